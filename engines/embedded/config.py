"""Shapes of a dense decoder, read from a Hugging Face `config.json`. No tensors.

Served: Llama, Mistral, Qwen2 and Qwen3 dense decoders with plain, linear, Llama-3 or YaRN rotary
embeddings. Anything else is refused by name rather than computed wrongly. A Mistral decoder with a
sliding window is served up to the length of the window, where it sees the same as without one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.errors import ModelLoadError

_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding parameters.

    Attributes:
        kind: default, linear, llama3 or yarn.
        theta: Base of the frequencies.
        options: The other keys of the model's rope parameters.
    """

    kind: str
    theta: float
    options: Mapping[str, float]

    def frequencies(self, head_dim: int, context_tokens: int) -> tuple[list[float], float]:
        """Angular frequency of each of the D/2 pairs, and the factor on cosine and sine.

        Source: Llama-3.1 reference scaling; YaRN, arXiv 2309.00071, section 3.
        """
        pairs = range(0, head_dim, 2)
        plain = [self.theta ** (-i / head_dim) for i in pairs]
        factor = self.options.get("factor", 1.0)
        if self.kind == "linear":
            return [f / factor for f in plain], 1.0
        if self.kind == "llama3":
            return [self._llama3(f, factor) for f in plain], 1.0
        if self.kind == "yarn":
            return self._yarn(plain, head_dim, factor, context_tokens)
        return plain, 1.0

    def _llama3(self, frequency: float, factor: float) -> float:
        low = self.options["low_freq_factor"]
        high = self.options["high_freq_factor"]
        trained = self.options["original_max_position_embeddings"]
        wavelength = 2 * math.pi / frequency
        if wavelength > trained / low:
            return frequency / factor
        if wavelength < trained / high:
            return frequency
        smooth = (trained / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    def _yarn(
        self, plain: list[float], head_dim: int, factor: float, context_tokens: int
    ) -> tuple[list[float], float]:
        trained = self.options.get("original_max_position_embeddings", context_tokens)

        def pair_at(rotations: float) -> float:
            turns = math.log(trained / (rotations * 2 * math.pi))
            return head_dim * turns / (2 * math.log(self.theta))

        low = max(math.floor(pair_at(self.options.get("beta_fast", 32.0))), 0)
        high = min(math.ceil(pair_at(self.options.get("beta_slow", 1.0))), head_dim - 1)
        span = max(high - low, 0.001)
        scaled = []
        for i, frequency in enumerate(plain):
            kept = 1 - min(1.0, max(0.0, (i - low) / span))
            scaled.append(frequency / factor * (1 - kept) + frequency * kept)
        default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        return scaled, self.options.get("attention_factor", default)


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes of one model. `head_dim` times `heads` need not equal `hidden`."""

    model_type: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    eps: float
    context_tokens: int
    is_tied: bool
    has_qk_norm: bool
    has_qkv_bias: bool
    has_out_bias: bool
    has_mlp_bias: bool
    rope: Rope
    eos_ids: frozenset[int]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: Missing, unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelLoadError(path, "the file is missing") from err
    except (OSError, ValueError) as err:
        raise ModelLoadError(path, f"not readable as JSON: {err}") from err
    if not isinstance(value, dict):
        raise ModelLoadError(path, f"a JSON object is needed, not {type(value).__name__}")
    return value


def read_config(directory: Path) -> DecoderConfig:
    """Shapes of the model in `directory`.

    Raises:
        ModelLoadError: A file or key is missing, or the architecture is not served.
    """
    if not directory.is_dir():
        raise ModelLoadError(directory, "no such directory")
    path = directory / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind not in _TYPES:
        raise ModelLoadError(
            path, f"model_type {kind!r} is not served; served are {', '.join(_TYPES)}"
        )
    _refuse_unserved(path, raw)
    try:
        config = _shapes(path, raw, read_eos_ids(directory, raw))
    except KeyError as err:
        raise ModelLoadError(path, f"the key {err.args[0]!r} is missing") from err
    except (TypeError, ValueError) as err:
        raise ModelLoadError(path, f"a key has a value of the wrong type: {err}") from err
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ModelLoadError(
            path,
            f"{config.heads} heads over {config.kv_heads} kv heads of width {config.head_dim}: "
            "heads must be a multiple of kv heads, and the width even",
        )
    for token in config.eos_ids:
        if not 0 <= token < config.vocab_size:
            raise ModelLoadError(
                path, f"eos_token_id {token} is not in 0 … {config.vocab_size - 1}, the vocabulary"
            )
    return config


def _shapes(path: Path, raw: Mapping[str, Any], eos_ids: frozenset[int]) -> DecoderConfig:
    def count(key: str, default: int | None = None) -> int:
        given = raw.get(key)
        if given is None:  # with a default, null stands for it
            given = raw[key] if default is None else default
        value = int(given)
        if value <= 0:
            raise ModelLoadError(path, f"the key {key!r} must be positive, not {value}")
        return value

    kind = str(raw["model_type"])
    heads, hidden = count("num_attention_heads"), count("hidden_size")
    has_attention_bias = kind in ("llama", "qwen3") and bool(raw.get("attention_bias", False))
    return DecoderConfig(
        model_type=kind,
        vocab_size=count("vocab_size"),
        hidden=hidden,
        layers=count("num_hidden_layers"),
        heads=heads,
        kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", hidden // heads),
        inner=count("intermediate_size"),
        eps=float(raw.get("rms_norm_eps", 1e-6)),
        context_tokens=_context_tokens(raw, count("max_position_embeddings", 2048)),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        has_qk_norm=kind == "qwen3",
        has_qkv_bias=kind == "qwen2" or has_attention_bias,
        has_out_bias=has_attention_bias,
        has_mlp_bias=kind == "llama" and bool(raw.get("mlp_bias", False)),
        rope=_rope(path, raw),
        eos_ids=eos_ids,
    )


def _context_tokens(raw: Mapping[str, Any], positions: int) -> int:
    """What a sequence may hold: within a sliding window all tokens see all before them."""
    window = raw.get("sliding_window") if raw["model_type"] == "mistral" else None
    return min(positions, int(window)) if window else positions


def _refuse_unserved(path: Path, raw: Mapping[str, Any]) -> None:
    sliding = raw.get("use_sliding_window", raw["model_type"] == "llama")
    if sliding and raw.get("sliding_window"):
        raise ModelLoadError(
            path, f"sliding_window {raw['sliding_window']} is not served; use a model without it"
        )
    if "sliding_attention" in (raw.get("layer_types") or ()):
        raise ModelLoadError(path, "layer_types names sliding_attention, which is not served")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelLoadError(
            path, f"hidden_act {raw['hidden_act']!r} is not served; only 'silu' is"
        )
    if raw.get("quantization_config"):
        raise ModelLoadError(path, "quantization_config is set; quantised weights are not served")


def _rope(path: Path, raw: Mapping[str, Any]) -> Rope:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelLoadError(path, f"the rope parameters must be an object, not {given!r}")
    options = dict(given)
    kind = options.pop("rope_type", options.pop("type", "default")) or "default"
    options.pop("type", None)
    theta = float(options.pop("rope_theta", raw.get("rope_theta", 10000.0)))
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelLoadError(
            path, f"rope_type {kind!r} is not served; served are default, linear, llama3, yarn"
        )
    if float(options.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ModelLoadError(path, "partial_rotary_factor other than 1 is not served")
    if kind == "yarn" and any(options.get(k) for k in ("mscale", "mscale_all_dim")):
        raise ModelLoadError(path, "yarn with mscale is not served")
    if kind == "yarn" and not options.get("truncate", True):
        raise ModelLoadError(path, "yarn with truncate off is not served")
    needed = {
        "linear": ("factor",),
        "yarn": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    for key in needed.get(kind, ()):
        if key not in options:
            raise ModelLoadError(path, f"rope_type {kind!r} needs the key {key!r}")
        if not isinstance(options[key], int | float) or options[key] <= 0:
            raise ModelLoadError(
                path, f"the rope parameter {key!r} must be above 0, not {options[key]!r}"
            )
    numbers = {k: float(v) for k, v in options.items() if isinstance(v, int | float)}
    return Rope(kind, theta, numbers)


def read_eos_ids(directory: Path, raw: Mapping[str, Any]) -> frozenset[int]:
    """What ends an answer, by `config.json` and `generation_config.json` together."""
    found: set[int] = set()
    generation = directory / "generation_config.json"
    sources = [raw] + ([read_json(generation)] if generation.exists() else [])
    for source in sources:
        value = source.get("eos_token_id")
        if value is not None:
            found.update(value if isinstance(value, list) else [value])
    return frozenset(int(v) for v in found)
