"""Presets: what they say, how a directory is matched to one, and what is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.errors import ModelLoadError
from reward_models.base import RewardKind
from reward_models.errors import RewardLoadError
from reward_models.outcome import open_judge as open_outcome
from reward_models.presets import choose, presets
from reward_models.process import open_judge as open_process
from reward_models.vllm_pooling import SERVED
from tests.contract.tiny_rewards import CHECKPOINTS, edit, write_checkpoint

OF_CHECKPOINT = {
    **{name: name for name in CHECKPOINTS if name in presets()},
    "reward-llama": "skywork-reward-v2",
    "reward-qwen3": "skywork-reward-v2",
}


def test_every_preset_has_its_sources_and_a_tiny_checkpoint() -> None:
    assert set(OF_CHECKPOINT.values()) == set(presets())
    for name, preset in presets().items():
        assert preset.name == name
        assert len(preset.sources) >= 2
        assert bool(preset.head.layers) != bool(preset.head.good and preset.head.bad)


def test_what_the_published_models_say() -> None:
    said = {n: (p.kind, p.aggregate, p.low, p.high) for n, p in presets().items()}
    step = RewardKind.PROCESS
    assert said == {
        "qwen-math-prm": (step, "prod", 0.0, 1.0),
        "rlhflow-prm": (step, "mean", 0.0, 1.0),
        "skywork-o1-prm": (step, "mean", 0.0, 1.0),
        "math-shepherd": (step, "min", 0.0, 1.0),
        "skywork-reward-v2": (RewardKind.OUTCOME, "last", -math.inf, math.inf),
    }


def test_the_page_lists_every_preset_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reward_models.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    listed = {cells[0].strip("| `"): cells for cells in rows if len(cells) == 8}
    assert set(listed) == set(presets())
    for name, preset in presets().items():
        *_, value_range, aggregate, pooled = listed[name]
        assert value_range == ("0…1" if preset.high == 1 else "any number")
        assert aggregate == (f"`{preset.aggregate}`" if preset.kind == "process" else "—")
        assert pooled.startswith("yes" if set(preset.architectures) & SERVED else "no")


@pytest.mark.parametrize("name", CHECKPOINTS)
async def test_a_judge_says_what_its_preset_says(name: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[name]
    directory = write_checkpoint(name, tmp_path)
    open_judge = open_process if checkpoint.kind == "process" else open_outcome
    judge = open_judge("rm", str(directory), {**checkpoint.options, "kv_tokens": 2048})
    preset = presets()[OF_CHECKPOINT[name]]
    tensors = load_file(directory / "model.safetensors")
    assert (judge.info.kind, judge.info.aggregate) == (preset.kind, preset.aggregate)
    assert (judge.info.low, judge.info.high) == (preset.low, preset.high)
    if preset.head.layers:  # an output head that is never used is not kept
        tensors.pop("lm_head.weight", None)
    assert judge.info.parameters == sum(tensor.numel() for tensor in tensors.values())
    await judge.aclose()


@pytest.mark.parametrize("name", ["qwen-math-prm", "skywork-o1-prm", "reward-llama"])
def test_a_directory_names_its_preset(name: str, tmp_path: Path) -> None:
    directory = write_checkpoint(name, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    assert choose(directory, None, tensors).name == OF_CHECKPOINT[name]


def test_a_value_head_is_known_by_its_tensor(tmp_path: Path) -> None:
    directory = write_checkpoint("skywork-o1-prm", tmp_path)
    edit(directory, architectures=["Qwen2ForCausalLM"])
    assert choose(directory, None, ["v_head.summary.weight"]).name == "skywork-o1-prm"


def refusal(directory: Path, kind: str = "process", **options: object) -> str:
    open_judge = open_process if kind == "process" else open_outcome
    with pytest.raises((RewardLoadError, ModelLoadError)) as caught:
        open_judge("rm", str(directory), {"kv_tokens": 2048, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_could_be_anything_must_be_named(tmp_path: Path) -> None:
    said = refusal(write_checkpoint("rlhflow-prm", tmp_path))
    assert "config.json" in said
    assert "options.preset" in said
    assert "rlhflow-prm" in said


def test_unknown_presets_name_the_nearest(tmp_path: Path) -> None:
    directory = write_checkpoint("rlhflow-prm", tmp_path)
    assert "did you mean 'rlhflow-prm'" in refusal(directory, preset="rlhflow-prn")
    assert "options.preset" in refusal(directory, preset=7)


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    said = refusal(write_checkpoint("rlhflow-prm", tmp_path), preset="qwen-math-prm")
    assert "config.json" in said
    assert "'llama'" in said


@pytest.mark.parametrize(
    ("name", "asked"), [("qwen-math-prm", "outcome"), ("reward-llama", "process")]
)
def test_the_wrong_kind_names_the_right_one(name: str, asked: str, tmp_path: Path) -> None:
    said = refusal(write_checkpoint(name, tmp_path), asked)
    assert f"kind = {CHECKPOINTS[name].kind!r}" in said


def gone(tensors: dict[str, torch.Tensor], key: str) -> None:
    del tensors[key]


def wider(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = torch.zeros(3, 64)


def unfinished(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key].view(-1)[0] = torch.nan


@pytest.mark.parametrize("spoil", [gone, wider, unfinished])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("qwen-math-prm", "score.0.weight"),
        ("qwen-math-prm", "score.2.bias"),
        ("skywork-o1-prm", "v_head.summary.weight"),
        ("reward-llama", "score.weight"),
    ],
)
def test_a_head_that_does_not_fit_is_named(
    name: str,
    key: str,
    spoil: Callable[[dict[str, torch.Tensor], str], None],
    tmp_path: Path,
) -> None:
    directory = write_checkpoint(name, tmp_path)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    spoil(tensors, key)
    save_file(tensors, path)
    said = refusal(directory, CHECKPOINTS[name].kind)
    assert "model.safetensors" in said
    assert key in said


def without_extra(raw: dict[str, Any]) -> None:
    raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] != "<extra_0>"]


def without_merges(raw: dict[str, Any]) -> None:
    raw["model"]["merges"] = []


@pytest.mark.parametrize(
    ("name", "spoil", "token"),
    [
        ("qwen-math-prm", without_extra, "'<extra_0>'"),
        ("math-shepherd", without_merges, "'ки'"),
    ],
)
def test_a_step_token_in_pieces_is_named(
    name: str, spoil: Callable[[dict[str, Any]], None], token: str, tmp_path: Path
) -> None:
    directory = write_checkpoint(name, tmp_path)
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    spoil(raw)
    path.write_text(json.dumps(raw))
    said = refusal(directory, **CHECKPOINTS[name].options)
    assert "tokenizer.json" in said
    assert f"{token} must be a single token" in said


def test_a_missing_begin_token_is_named(tmp_path: Path) -> None:
    directory = write_checkpoint("skywork-o1-prm", tmp_path)
    path = directory / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    del raw["bos_token"]
    path.write_text(json.dumps(raw))
    said = refusal(directory)
    assert "tokenizer_config.json" in said
    assert "'bos_token'" in said


def test_a_template_without_turns_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint("rlhflow-prm", tmp_path)
    (directory / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    assert "as turns" in refusal(directory, preset="rlhflow-prm")
    (directory / "chat_template.jinja").write_text("{{ raise_exception('one turn only') }}")
    assert "one turn only" in refusal(directory, preset="rlhflow-prm")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    assert "nonsense" in refusal(write_checkpoint("qwen-math-prm", tmp_path), nonsense=1)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere", "outcome")
    assert "bough.json" in refusal(tmp_path / "nowhere")


async def test_a_short_window_bounds_what_a_mistral_reads(tmp_path: Path) -> None:
    directory = write_checkpoint("math-shepherd", tmp_path, context_tokens=96)
    judge = open_process("rm", str(directory), CHECKPOINTS["math-shepherd"].options)
    assert judge._runtime.context_tokens == 96
    await judge.aclose()
