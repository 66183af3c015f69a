"""The files of a multifurcation reward model: what they mean, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.embedded.config import read_config
from engines.errors import ModelLoadError
from reward_models.errors import RewardLoadError
from reward_models.multifurcation import open_judge
from reward_models.multifurcation_files import read_files
from tests.contract.tiny_multifurcation import STEM, write_multifurcation
from tests.contract.tiny_rewards import HIDDEN

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multifurcation(tmp_path_factory.mktemp("written")).parent


@pytest.fixture
def model(tmp_path: Path, written: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy")) / "mrm"


def base_of(model: Path) -> str:
    return str(model.parent / "base")


def refusal(model: Path, base: str | None = None) -> str:
    with pytest.raises(RewardLoadError) as caught:
        read_files(model, base or base_of(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_published_layout_is_read(model: Path) -> None:
    adapter = load_file(model / ADAPTER)
    assert len(adapter) == 64
    count = 16 * (4 * HIDDEN + HIDDEN * 4 + 4 * HIDDEN + HIDDEN // 2 * 4)
    assert sum(tensor.numel() for tensor in adapter.values()) == count
    files = read_files(model, base_of(model))
    plain = load_file(Path(base_of(model)) / "model.safetensors")
    changed = {name for name in plain if not torch.equal(plain[name], files.tensors[name])}
    assert changed == {
        f"model.layers.{i}.self_attn.{name}_proj.weight" for i in range(16) for name in "qv"
    }
    assert files.bias.dtype == torch.float32
    assert not files.bias.requires_grad


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_bias_saved_as_a_parameter_is_the_same(model: Path, is_zip: bool) -> None:
    plain = read_files(model, base_of(model)).bias
    parameter = torch.nn.Parameter(plain.bfloat16())
    torch.save(parameter, model / "lm_head_bias.pt", _use_new_zipfile_serialization=is_zip)
    again = read_files(model, base_of(model)).bias
    assert torch.equal(again, plain)
    assert not again.requires_grad


def test_the_mask_exempts_what_ends_an_answer_and_nothing_else(model: Path) -> None:
    stored = torch.load(model / "unseen_mask.pt", weights_only=True)
    (end,) = read_config(Path(base_of(model))).eos_ids
    unseen = read_files(model, base_of(model)).unseen
    assert stored[end]
    assert (stored != unseen).nonzero().flatten().tolist() == [end]


def test_the_base_is_named_by_the_option_or_by_the_card(model: Path) -> None:
    with pytest.raises(RewardLoadError, match=r"Llama-Guard-3-1B.*options\.base"):
        read_files(model, None)
    (model / "bough.json").write_text(json.dumps({"base": "../base", "prefill": "shown"}))
    assert read_files(model, None).base == Path(base_of(model))
    assert "not a directory" in refusal(model, base=str(model / "nowhere"))


@pytest.mark.parametrize(
    "name", ["adapter_config.json", ADAPTER, "lm_head_bias.pt", "unseen_mask.pt"]
)
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"{\xff")])
def test_a_missing_or_broken_file_is_named(
    model: Path, name: str, harm: Callable[[Path], Any]
) -> None:
    harm(model / name)
    assert name in refusal(model)


class Payload:
    """What a hostile pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    torch.save(Payload(), model / "lm_head_bias.pt")
    assert "lm_head_bias.pt" in refusal(model)
    assert not (model / "was-here").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lm_head_bias.pt", torch.zeros(3), "(3,)"),
        ("lm_head_bias.pt", {"bias": torch.zeros(3)}, "dict"),
        ("lm_head_bias.pt", "nan", "finite"),
        ("lm_head_bias.pt", "whole numbers", "floating"),
        ("unseen_mask.pt", "whole numbers", "bool"),
        ("unseen_mask.pt", "all", "ever seen"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(model: Path, name: str, value: Any, said: str) -> None:
    vocab = read_config(Path(base_of(model))).vocab_size
    made = {
        "nan": torch.full((vocab,), torch.nan),
        "whole numbers": torch.zeros(vocab, dtype=torch.int64),
        "all": torch.ones(vocab, dtype=torch.bool),
    }
    torch.save(made[value] if isinstance(value, str) else value, model / name)
    message = refusal(model)
    assert name in message
    assert said in message


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "LOHA"},
        {"task_type": "SEQ_CLS"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head"]},
        {"target_modules": []},
        {"use_dora": True},
        {"r": 8},
    ],
)
def test_an_adapter_of_another_kind_is_refused(model: Path, change: dict[str, Any]) -> None:
    path = model / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refusal(model)


def rewrite(model: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(model / ADAPTER)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, model / ADAPTER)


def test_each_matrix_must_be_there_and_no_other(model: Path) -> None:
    name = f"{STEM}.7.self_attn.v_proj.lora_B.weight"
    tensor = load_file(model / ADAPTER)[name]
    rewrite(model, **{name: None})
    assert f"{name!r} is missing" in refusal(model)
    rewrite(model, **{name: tensor.T.contiguous()})
    assert "model.layers.7.self_attn.v_proj" in refusal(model)
    rewrite(model, **{name: tensor, f"{STEM}.16.self_attn.v_proj.lora_B.weight": tensor + 1})
    assert "layers.16" in refusal(model)


def test_a_base_that_names_no_end_is_refused(model: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        path = model.parent / "base" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    assert "eos_token_id" in refusal(model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefill": "seen"}, RewardLoadError),
        ({"kv_token": 3}, ModelLoadError),
        ({"base": "nowhere"}, RewardLoadError),
        ({"base": 3}, RewardLoadError),
    ],
)
def test_wrong_options_are_refused(
    model: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_judge("mrm", str(model), {"base": base_of(model), **options})


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        open_judge("mrm", str(tmp_path / "nowhere"), {})
