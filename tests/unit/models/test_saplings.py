"""The committed saplings: sizes, tokenizer, template, and what their files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from models.registry import bundled, describe

SUMS = bundled()["sapling-sums"]
JUDGE = bundled()["sapling-prm"]
TOKENIZER = Tokenizer.from_file(str(SUMS / "tokenizer.json"))
MAX_MODEL_BYTES = 4_500_000


def _num_parameters(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                is_adapter = path.name == "adapter_model.safetensors"  # float32, as published
                wanted = "torch.float32" if is_adapter else "torch.bfloat16"
                assert str(tensor.dtype) == wanted
                total += tensor.numel()
    return total


def test_bundled_ids_and_kinds() -> None:
    assert set(bundled()) >= {"sapling-sums", "sapling-prm"}
    assert "sapling-sums" in bundled("generator")
    assert "sapling-prm" in bundled("process")
    assert (JUDGE / describe(JUDGE)["base"] / "config.json").exists()


@pytest.mark.parametrize("directory", bundled().values(), ids=bundled())
def test_sapling_is_small_and_has_a_card(directory: Path) -> None:
    size_bytes = sum(path.stat().st_size for path in directory.rglob("*.*"))
    assert size_bytes <= MAX_MODEL_BYTES
    assert 0 < _num_parameters(directory) <= 2_000_000
    card = (directory / "CARD.md").read_text()
    assert "nan" not in card.lower().split()
    assert "## Quality" in card


@pytest.mark.parametrize("text", ["", "[]", "{", '{"id": 3}'])
def test_describe_refuses_a_broken_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "bough.json").write_text(text)
    with pytest.raises(ValueError, match=r"bough\.json"):
        describe(tmp_path)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(text=st.text(alphabet="ab \n1é."))
def test_a_newline_is_always_one_token_of_its_own(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False).tokens
    newline = TOKENIZER.encode("\n", add_special_tokens=False).tokens
    assert len(newline) == 1
    assert tokens.count(newline[0]) == text.count("\n")
    assert not any(newline[0] in token for token in tokens if token != newline[0])


def test_digits_are_single_tokens() -> None:
    tokens = TOKENIZER.encode("1234+98", add_special_tokens=False).tokens
    assert tokens == ["1", "2", "3", "4", "+", "9", "8"]


def test_end_of_turn_is_the_eos_of_every_file() -> None:
    config = json.loads((SUMS / "config.json").read_text())
    of_tokenizer = json.loads((SUMS / "tokenizer_config.json").read_text())
    assert TOKENIZER.token_to_id(of_tokenizer["eos_token"]) == config["eos_token_id"]
    assert TOKENIZER.token_to_id(of_tokenizer["bos_token"]) == config["bos_token_id"]
    assert config["max_position_embeddings"] >= 2048
