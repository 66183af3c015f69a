"""Published checkpoints, told apart by `model_type`: config keys and tensors, name by name.

What is not served is refused by name rather than computed wrongly: a key with another value, a
tensor that is missing, misshapen or unknown. Nothing is fetched, and no code of a checkpoint runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.diffusion.network import Network
from engines.embedded.weights import Tensors
from engines.errors import ModelLoadError


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory, and what its family says of it.

    Attributes:
        network: The model.
        mask_id: Stands for what is not revealed yet.
        max_length: The most tokens of a row.
        kernel: The one its authors use.
        eos_ids: End a text.
        parameters: Weights.
    """

    network: Network
    mask_id: int
    max_length: int
    kernel: str
    eos_ids: frozenset[int]
    parameters: int


@dataclass(frozen=True)
class Place:
    """Where a model is read from, and how it computes."""

    directory: Path
    raw: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device


class Keys:
    """Reads a `config.json` key by key.

    Args:
        path: Of the file.
        raw: Its object.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self._path = path
        self._raw = raw

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; null stands for the default.

        Raises:
            ModelLoadError: It is missing or something else.
        """
        value = self._raw.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelLoadError(self._path, f"the key {key!r} is missing")
        if type(value) is not int or value < least:
            raise ModelLoadError(
                self._path, f"the key {key!r} must be a whole number from {least}, not {value!r}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number.

        Raises:
            ModelLoadError: It is something else.
        """
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ModelLoadError(self._path, f"the key {key!r} must be above 0, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._raw.get(key)
        return default if value is None else bool(value)

    def require(self, key: str, served: object) -> None:
        """Refuse any value but `served`; a missing key means it.

        Raises:
            ModelLoadError: The key says something else.
        """
        value = self._raw.get(key)
        if value is not None and value != served:
            raise ModelLoadError(
                self._path, f"the key {key!r} is {value!r}, which is not served; only {served!r} is"
            )

    def token(self, key: str, default: int | None, vocab_size: int) -> int:
        """A token id.

        Raises:
            ModelLoadError: It is missing or no id of the vocabulary.
        """
        token = self.count(key, default, least=0)
        if token >= vocab_size:
            raise ModelLoadError(
                self._path, f"the key {key!r} is {token}, not in 0 … {vocab_size - 1}"
            )
        return token


def check_tensors(
    directory: Path,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
    """Every expected tensor is there, of its shape and finite, and there is no other.

    Raises:
        ModelLoadError: Naming the first that is wrong.
    """
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelLoadError(directory, f"the weights lack the tensor {name!r}")
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                directory,
                f"tensor {name!r} has shape {tuple(tensor.shape)}; config.json says {shape}",
            )
        if not tensor.is_floating_point():
            raise ModelLoadError(
                directory,
                f"tensor {name!r} is stored as {tensor.dtype}; quantised weights are not served",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(directory, f"tensor {name!r} holds NaN or infinity")
    left_out = tuple(ignored)
    for name in sorted(tensors.keys() - shapes.keys()):
        if not name.endswith(left_out):
            raise ModelLoadError(
                directory, f"the weights hold the tensor {name!r}, which this family does not have"
            )


def converted(tensor: Tensor, place: Place) -> Tensor:
    """As the model computes."""
    return tensor.to(place.device, place.dtype).contiguous()
