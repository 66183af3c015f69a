"""The files of a multifurcation reward model, read and checked one by one.

A directory holds `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them,
`lm_head_bias.pt` (V,) and `unseen_mask.pt` (V,) bool, True for the tokens that no training text
contained; V is the base's vocabulary. The base lies elsewhere. The two `.pt` files are pickles:
they are read with torch's loader for plain tensors, which runs no code.

Source: the layout of the weights released with Saffron-1, arXiv 2506.06444.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from engines.base import TokenIds
from engines.embedded.config import DecoderConfig, read_config, read_json
from engines.embedded.tokenizer import ChatTokenizer
from engines.embedded.weights import Tensors, read_tensors
from engines.errors import ModelLoadError
from reward_models.errors import RewardLoadError
from reward_models.layouts import single_token
from reward_models.lora import merge, read_file

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER: Final = "adapter_model.safetensors"
BIAS: Final = "lm_head_bias.pt"
UNSEEN: Final = "unseen_mask.pt"
CARD: Final = "bough.json"

_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
}
"""Keys of the adapter's configuration, and what they may be where they are given."""

_BLOCK: Final[Mapping[str, str]] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}


@dataclass(frozen=True)
class MultifurcationFiles:
    """What a directory and its base hold.

    Attributes:
        base: The base model's directory.
        tensors: The base's weights with the adapter merged in.
        bias: (V,) float32.
        unseen: (V,) bool, end-of-sequence tokens exempt.
        card: Of `bough.json`; empty without one.
    """

    base: Path
    tensors: Tensors
    bias: torch.Tensor
    unseen: torch.Tensor
    card: Mapping[str, Any]


def read_files(directory: Path, base: str | None) -> MultifurcationFiles:
    """Read a model and merge its adapter.

    Args:
        directory: The model's.
        base: The base's; None leaves it to `base` in `bough.json`, a path from there.

    Raises:
        RewardLoadError: A file is missing, unreadable, or does not fit the base.
        ModelLoadError: The base cannot be served.
    """
    card = _read(directory / CARD) if (directory / CARD).exists() else {}
    config = _read(directory / ADAPTER_CONFIG)
    where = _base(directory, base, card, config)
    decoder = read_config(where)
    _check_adapter(directory, config, decoder)
    bias = _vector(directory / BIAS, decoder.vocab_size)
    if not bias.is_floating_point() or not bool(torch.isfinite(bias).all()):
        raise RewardLoadError(f"{directory / BIAS}: must be finite floating point numbers")
    unseen = _vector(directory / UNSEEN, decoder.vocab_size)
    if unseen.dtype != torch.bool:
        raise RewardLoadError(f"{directory / UNSEEN}: must be bool, not {unseen.dtype}")
    if bool(unseen.all()):
        raise RewardLoadError(f"{directory / UNSEEN}: says that no token was ever seen")
    tensors = merge(read_tensors(where), directory)
    return MultifurcationFiles(where, tensors, bias.float(), _exempt(unseen, decoder, where), card)


def beginning(tokenizer: ChatTokenizer, base: Path) -> TokenIds:
    """The token that every text begins with; none where the base's tokenizer names none.

    Raises:
        RewardLoadError: It is named and is not one token.
    """
    path = base / "tokenizer_config.json"
    value = _read(path).get("bos_token") if path.exists() else None
    text = value.get("content") if isinstance(value, Mapping) else value
    return () if text is None else (single_token(tokenizer, base, str(text)),)


def _base(directory: Path, base: str | None, card: Mapping[str, Any], config: Any) -> Path:
    if base is None and "base" not in card:
        name = config.get("base_model_name_or_path")
        raise RewardLoadError(
            f"{directory}: the adapter belongs to {name!r}; set options.base to a local directory "
            "of that model"
        )
    named = card["base"] if base is None else base
    found = (directory if base is None else Path()) / str(named)
    if not isinstance(named, str) or not found.is_dir():
        raise RewardLoadError(f"{directory}: the base {named!r} is not a directory")
    return found.resolve()


def _check_adapter(directory: Path, config: Mapping[str, Any], decoder: DecoderConfig) -> None:
    """Raise RewardLoadError unless each target in each layer has its two matrices, and no other.

    Their shapes are checked against the base's when they are merged.
    """
    path = directory / ADAPTER_CONFIG
    for key, allowed in _FIXED.items():
        if key in config and config[key] not in allowed:
            raise RewardLoadError(f"{path}: {key} {config[key]!r} is not served; {allowed[0]!r} is")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets or not set(targets) <= set(_BLOCK):
        known = ", ".join(_BLOCK)
        raise RewardLoadError(f"{path}: target_modules {targets!r} must be a list of {known}")
    stem = "base_model.model.model.layers"
    wanted = {
        f"{stem}.{layer}.{_BLOCK[name]}.{name}.lora_{part}.weight"
        for layer in range(decoder.layers)
        for name in targets
        for part in "AB"
    }
    found = {name.replace(".default.weight", ".weight") for name in read_file(directory / ADAPTER)}
    for name in sorted(wanted - found):
        raise RewardLoadError(f"{directory / ADAPTER}: the tensor {name!r} is missing")
    for name in sorted(found - wanted):
        raise RewardLoadError(
            f"{directory / ADAPTER}: the tensor {name!r} belongs to no target in the base's "
            f"{decoder.layers} layers"
        )


def _vector(path: Path, size: int) -> torch.Tensor:
    """The tensor (size,) in a `.pt` file."""
    if not path.exists():
        raise RewardLoadError(f"{path}: the file is missing")
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as err:
        line = str(err).partition("\n")[0]
        raise RewardLoadError(f"{path}: not readable as a tensor: {line}") from err
    if not isinstance(tensor, torch.Tensor):
        raise RewardLoadError(f"{path}: must be a tensor, not {type(tensor).__name__}")
    if tuple(tensor.shape) != (size,):
        raise RewardLoadError(
            f"{path}: must be {(size,)}, one for each token of the base, not {tuple(tensor.shape)}"
        )
    return tensor.detach()


def _exempt(unseen: torch.Tensor, decoder: DecoderConfig, base: Path) -> torch.Tensor:
    """The mask without the tokens that end an answer, which no training text holds."""
    ends = sorted(token for token in decoder.eos_ids if 0 <= token < decoder.vocab_size)
    if not ends:
        raise RewardLoadError(f"{base / 'config.json'}: the key 'eos_token_id' is missing")
    exempted = unseen.clone()
    exempted[ends] = False
    return exempted


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
