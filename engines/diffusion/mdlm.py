"""MDLM: a diffusion transformer over tokens whose time input is held at zero.

Every block shifts, scales and gates by a function of the time (adaLN). With `time_conditioning`
false that time is always zero, so these are constants, computed once when the model is loaded.

Source: ``MDLM`` of the published checkpoints (``mdlm-owt``); arXiv 2406.07524. The tokenizer is
GPT-2's, and the mask is the last row of the embedding.

Letters: B rows, T tokens, M spots, C hidden width, H heads, D head width, E width of the time
embedding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu

from engines.diffusion.checkpoint import Checkpoint, Keys, Place, check_tensors, converted
from engines.diffusion.network import visible
from engines.embedded.config import read_eos_ids
from engines.embedded.weights import Tensors, read_tensors

_TIME_WIDTH: Final = 256
_MLP_RATIO: Final = 4
_ROPE_BASE: Final = 10000.0
_TOP: Final = "backbone."


@dataclass(frozen=True)
class _Sizes:
    vocab_size: int
    length: int
    hidden: int
    cond: int
    blocks: int
    heads: int


@dataclass(frozen=True)
class _Block:
    """Weights of a block; `modulation` is (6, C): shift, scale and gate of each half."""

    norm1: Tensor
    qkv: Tensor
    out: Tensor
    norm2: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    modulation: Tensor


def read_mdlm(place: Place) -> Checkpoint:
    """The model in a directory.

    Raises:
        ModelLoadError: A key or a tensor is missing or misshapen, or the model reads the time.
    """
    keys = Keys(place.directory / "config.json", place.raw)
    keys.require("time_conditioning", False)
    sizes = _Sizes(
        vocab_size=keys.count("vocab_size"),
        length=keys.count("model_length"),
        hidden=keys.count("hidden_dim"),
        cond=keys.count("cond_dim"),
        blocks=keys.count("n_blocks"),
        heads=keys.count("n_heads"),
    )
    tensors = read_tensors(place.directory)
    check_tensors(place.directory, tensors, _shapes(sizes), ("rotary_emb.inv_freq",))
    return Checkpoint(
        network=MdlmNetwork(sizes, tensors, place),
        mask_id=sizes.vocab_size - 1,
        max_length=sizes.length,
        kernel="mdlm",
        eos_ids=read_eos_ids(place.directory, place.raw),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )


class MdlmNetwork:
    """See the module's docstring; `engines.diffusion.network.Network`."""

    def __init__(self, sizes: _Sizes, tensors: Tensors, place: Place) -> None:
        self._sizes = sizes
        self.device = place.device
        self.vocab_size = sizes.vocab_size
        self._embedding = converted(tensors[f"{_TOP}vocab_embed.embedding"], place)
        time = _time_zero(tensors)  # (E,) float32
        self._blocks = [_block(tensors, place, time, i) for i in range(sizes.blocks)]
        top = f"{_TOP}output_layer."
        self._norm = converted(tensors[f"{top}norm_final.weight"], place)
        self._final = converted(_modulation(tensors, top, time, 2), place)
        self._head = converted(tensors[f"{top}linear.weight"], place)
        self._head_bias = converted(tensors[f"{top}linear.bias"], place)
        self._cos, self._sin = _rotations(sizes, place)

    @torch.inference_mode()
    def logits(self, ids: Tensor, lengths: Sequence[int], rows: Tensor, spots: Tensor) -> Tensor:
        """See `Network.logits`."""
        x = self._embedding[ids]  # (B, T, C)
        seen = visible(lengths, ids.shape[1], self.device)
        for block in self._blocks:
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = block.modulation
            h = _normed(x, block.norm1) * (1 + scale) + shift
            x = x + gate * linear(self._attended(linear(h, block.qkv), seen), block.out)
            h = _normed(x, block.norm2) * (1 + scale_mlp) + shift_mlp
            h = gelu(linear(h, block.up, block.up_bias), approximate="tanh")
            x = x + gate_mlp * linear(h, block.down, block.down_bias)
        shift, scale = self._final
        asked = _normed(x[rows, spots], self._norm) * (1 + scale) + shift
        return linear(asked, self._head, self._head_bias)

    def _attended(self, qkv: Tensor, seen: Tensor | None) -> Tensor:
        width = self._sizes.hidden // self._sizes.heads
        split = qkv.view(*qkv.shape[:2], 3, self._sizes.heads, width)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        q, k = self._rotated(q), self._rotated(k)  # (B, H, T, D)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return mixed.transpose(1, 2).flatten(-2)

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = self._cos[: x.shape[-2]], self._sin[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return layer_norm(x.float(), (x.shape[-1],)).to(weight.dtype) * weight


def _time_zero(tensors: Tensors) -> Tensor:
    """The condition that time 0 makes: cosines of 0, then sines, through a small network."""
    half = _TIME_WIDTH // 2
    wave = torch.cat([torch.ones(half), torch.zeros(half)])
    at = f"{_TOP}sigma_map.mlp."
    named = {
        key: tensors[f"{at}{key}"].float() for key in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    h = silu(linear(wave, named["0.weight"], named["0.bias"]))
    return silu(linear(h, named["2.weight"], named["2.bias"]))


def _modulation(tensors: Tensors, at: str, time: Tensor, parts: int) -> Tensor:
    """Shifts, scales and gates, (parts, C) float32."""
    weight = tensors[f"{at}adaLN_modulation.weight"].float()
    bias = tensors[f"{at}adaLN_modulation.bias"].float()
    return linear(time, weight, bias).view(parts, -1)


def _block(tensors: Tensors, place: Place, time: Tensor, number: int) -> _Block:
    at = f"{_TOP}blocks.{number}."

    def get(name: str) -> Tensor:
        return converted(tensors[at + name], place)

    return _Block(
        norm1=get("norm1.weight"),
        qkv=get("attn_qkv.weight"),
        out=get("attn_out.weight"),
        norm2=get("norm2.weight"),
        up=get("mlp.0.weight"),
        up_bias=get("mlp.0.bias"),
        down=get("mlp.2.weight"),
        down_bias=get("mlp.2.bias"),
        modulation=converted(_modulation(tensors, at, time, 6), place),
    )


def _rotations(sizes: _Sizes, place: Place) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (positions, D) each, halves repeated."""
    width = sizes.hidden // sizes.heads
    inverse = 1.0 / _ROPE_BASE ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(sizes.length).float(), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    return converted(angles.cos(), place), converted(angles.sin(), place)


def _shapes(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    hidden, cond, vocab = sizes.hidden, sizes.cond, sizes.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (vocab, hidden),
        "sigma_map.mlp.0.weight": (cond, _TIME_WIDTH),
        "sigma_map.mlp.0.bias": (cond,),
        "sigma_map.mlp.2.weight": (cond, cond),
        "sigma_map.mlp.2.bias": (cond,),
        "output_layer.norm_final.weight": (hidden,),
        "output_layer.linear.weight": (vocab, hidden),
        "output_layer.linear.bias": (vocab,),
        "output_layer.adaLN_modulation.weight": (2 * hidden, cond),
        "output_layer.adaLN_modulation.bias": (2 * hidden,),
    }
    block: dict[str, tuple[int, ...]] = {
        "norm1.weight": (hidden,),
        "attn_qkv.weight": (3 * hidden, hidden),
        "attn_out.weight": (hidden, hidden),
        "norm2.weight": (hidden,),
        "mlp.0.weight": (_MLP_RATIO * hidden, hidden),
        "mlp.0.bias": (_MLP_RATIO * hidden,),
        "mlp.2.weight": (hidden, _MLP_RATIO * hidden),
        "mlp.2.bias": (hidden,),
        "adaLN_modulation.weight": (6 * hidden, cond),
        "adaLN_modulation.bias": (6 * hidden,),
    }
    for number in range(sizes.blocks):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {f"{_TOP}{name}": shape for name, shape in shapes.items()}
