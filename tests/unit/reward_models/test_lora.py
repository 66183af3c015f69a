"""Adapters merged into a base: the arithmetic, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reward_models.errors import RewardLoadError
from reward_models.lora import merge, read_file

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
KEY = "model.layers.0.self_attn.q_proj.weight"
A = torch.arange(6.0).view(2, 3)
B = torch.arange(8.0).view(4, 2)
BASE = {KEY: torch.ones(4, 3, dtype=torch.bfloat16), "other": torch.zeros(2)}


def adapter(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8, **config}))
    whole = {f"{STEM}.lora_A.weight": A, f"{STEM}.lora_B.weight": B}
    save_file(whole if tensors is None else tensors, directory / "adapter_model.safetensors")
    return directory


def refusal(directory: Path, base: dict[str, torch.Tensor] = BASE) -> str:
    with pytest.raises(RewardLoadError) as caught:
        merge(base, directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("infix", ["", ".default"])
def test_the_delta_is_scaled_and_added_in_float32(tmp_path: Path, infix: str) -> None:
    tensors = {f"{STEM}.lora_A{infix}.weight": A, f"{STEM}.lora_B{infix}.weight": B}
    merged = merge(BASE, adapter(tmp_path, tensors))
    assert torch.equal(merged[KEY], 1 + 4.0 * (B @ A))
    assert merged[KEY].dtype == torch.float32
    assert torch.equal(merged["other"], BASE["other"])
    assert torch.equal(BASE[KEY].float(), torch.ones(4, 3))


def test_an_empty_adapter_is_the_base(tmp_path: Path) -> None:
    assert torch.equal(merge(BASE, adapter(tmp_path, {}))[KEY], BASE[KEY].float())


@pytest.mark.parametrize(
    "config",
    [{"r": None}, {"r": 0}, {"lora_alpha": "much"}, {"r": [2]}, {"lora_alpha": -1}, {"r": -2}],
)
def test_rank_and_alpha_must_be_numbers(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "adapter_config.json" in refusal(adapter(tmp_path, **config))


@pytest.mark.parametrize(
    "option", ["use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"]
)
def test_what_changes_the_arithmetic_is_refused_by_name(tmp_path: Path, option: str) -> None:
    value: object = {"q_proj": 4} if option.endswith("pattern") else True
    assert option in refusal(adapter(tmp_path, **{option: value}))
    merge(BASE, adapter(tmp_path, **{option: {} if option.endswith("pattern") else False}))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    directory = adapter(tmp_path)
    (directory / name).unlink()
    assert name in refusal(directory)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    directory = adapter(tmp_path)
    (directory / name).write_bytes(b"{\xff")
    assert name in refusal(directory)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"lm_head.weight": A}, "lm_head.weight"),
        ({f"{STEM}.lora_C.weight": A}, "lora_C"),
        ({f"{STEM}.lora_A.weight": A}, "lora_B"),
        ({f"{STEM}.lora_B.weight": B}, "lora_A"),
        ({f"{STEM}x.lora_A.weight": A, f"{STEM}x.lora_B.weight": B}, "q_projx"),
        ({f"{STEM}.lora_A.weight": A, f"{STEM}.lora_B.weight": B[:3]}, "(3, 2)"),
        ({f"{STEM}.lora_A.weight": A, f"{STEM}.lora_B.weight": torch.ones(4, 5)}, "q_proj"),
        ({f"{STEM}.lora_A.weight": A[0], f"{STEM}.lora_B.weight": B}, "q_proj"),
        ({f"{STEM}.lora_A.weight": A[:1], f"{STEM}.lora_B.weight": B[:, :1]}, "rank"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], named: str
) -> None:
    clones = {key: tensor.clone() for key, tensor in tensors.items()}
    assert named in refusal(adapter(tmp_path, clones))


def test_one_file_is_read(tmp_path: Path) -> None:
    save_file({"x": A}, tmp_path / "x.safetensors")
    assert torch.equal(read_file(tmp_path / "x.safetensors")["x"], A)
    with pytest.raises(RewardLoadError, match="missing"):
        read_file(tmp_path / "y.safetensors")
