"""A wider and deeper network that computes the same function: a large model's cost, same words.

Every layer gets more MLP units, whose columns in the down projection are zero, and layers are added
whose output projections are zero. Their other weights are random and all of it is dense and
computed; what comes out is added as zeros.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS: Final = "model.safetensors"
_CONFIG: Final = "config.json"
_SPREAD: Final = 0.02  # of random weights


@dataclass(frozen=True)
class Wide:
    """Shape of the wider network; the defaults make 53.3 million parameters of sapling-sums."""

    units: int = 11_264
    layers: int = 8


def write_widened(source: Path, directory: Path, *, seed: int, shape: Wide | None = None) -> Path:
    """Widen the Llama in `source` into `directory`, which is made; random weights from `seed`.

    Raises:
        ValueError: The model is wider or deeper already, or has biases.
    """
    wide = shape or Wide()
    config = json.loads((source / _CONFIG).read_text())
    tensors = load_file(source / _WEIGHTS)
    old_layers, old_units = config["num_hidden_layers"], config["intermediate_size"]
    if wide.layers < old_layers or wide.units < old_units:
        raise ValueError(f"{source} has {old_layers} layers of {old_units} units, not below {wide}")
    if any(name.endswith(".bias") for name in tensors):
        raise ValueError(f"{source} has biases; only models without them are widened")
    draw = torch.Generator().manual_seed(seed)
    for layer in range(old_layers):
        _add_units(tensors, f"model.layers.{layer}.mlp.", wide.units - old_units, draw)
    for layer in range(old_layers, wide.layers):
        _add_layer(tensors, layer, draw)
    directory.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in (_WEIGHTS, _CONFIG):
            shutil.copy(path, directory / path.name)
    config |= {"num_hidden_layers": wide.layers, "intermediate_size": wide.units}
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})
    return directory


def _add_units(tensors: dict[str, Any], mlp: str, more: int, draw: torch.Generator) -> None:
    """`more` units whose output counts for nothing."""
    for name in ("gate_proj", "up_proj"):
        old = tensors[f"{mlp}{name}.weight"]
        tensors[f"{mlp}{name}.weight"] = torch.cat((old, _random(old, (more, old.shape[1]), draw)))
    down = tensors[f"{mlp}down_proj.weight"]
    tensors[f"{mlp}down_proj.weight"] = torch.cat(
        (down, down.new_zeros(down.shape[0], more)), dim=1
    ).contiguous()


def _add_layer(tensors: dict[str, Any], layer: int, draw: torch.Generator) -> None:
    """A layer shaped like the first whose two outputs are zero."""
    first, at = "model.layers.0.", f"model.layers.{layer}."
    for name in [name for name in tensors if name.startswith(first)]:
        old, new = tensors[name], at + name.removeprefix(first)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[new] = torch.zeros_like(old)
        elif name.endswith("norm.weight"):
            tensors[new] = torch.ones_like(old)
        else:
            tensors[new] = _random(old, tuple(old.shape), draw)


def _random(like: torch.Tensor, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    return (torch.randn(shape, generator=draw) * _SPREAD).to(like.dtype)
