"""Writes a trained multifurcation reward model in the files that one was published in.

The directory is what `reward_models.multifurcation_files` reads. The base's weights are not copied.

Source: the layout of the weights released with Saffron-1, arXiv 2506.06444.
Differs: the bias is float32, because a trained one loses in bfloat16 what a random one does not; a
`bough.json` names the base and what is read of a beginning that the caller wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from reward_models.multifurcation_files import ADAPTER, ADAPTER_CONFIG, BIAS, CARD, UNSEEN
from reward_models.training.low_rank import tensors_of
from reward_models.training.multifurcation import Multifurcation, Shape


def write_release(
    directory: Path,
    network: Multifurcation,
    shape: Shape,
    unseen: torch.Tensor,
    *,
    base: Path,
    about: Mapping[str, Any],
) -> None:
    """Write the four published files and ``bough.json``.

    Args:
        directory: Made when it is missing.
        network: What was trained.
        shape: How its adapters are built.
        unseen: (V,) bool, see `reward_models.training.token_rewards.unseen_mask`.
        base: The base's directory; named by its path from `directory`.
        about: More for ``bough.json``: ``prefill``, hidden or shown, say.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = os.path.relpath(base.resolve(), directory.resolve())
    config = {
        "base_model_name_or_path": path,
        "bias": "none",
        "fan_in_fan_out": False,
        "layers_to_transform": None,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": shape.rank,
        "target_modules": list(shape.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    _write_json(directory / ADAPTER_CONFIG, config)
    save_file(tensors_of(network.adapters), directory / ADAPTER, metadata={"format": "pt"})
    torch.save(network.bias.detach().to("cpu", torch.float32), directory / BIAS)
    torch.save(unseen, directory / UNSEEN)
    _write_json(directory / CARD, {**about, "base": path})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
