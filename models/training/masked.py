"""A bidirectional network that fills in masked tokens, for training.

Parameter names and ``config.json`` are those of LLaDA's published checkpoints, so that a state dict
is a checkpoint that any loader of that family reads. Every token sees every other, padding there is
none: rows of a batch are equally long.

Letters in shape comments: B rows, T tokens, H heads, D head width, C hidden.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class MaskedShape:
    """The sizes of a network, by LLaDA's names."""

    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    d_model: int = 128
    n_layers: int = 5
    n_heads: int = 4
    mlp_hidden_size: int = 352
    max_sequence_length: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class RmsNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale, in the dtype of its input."""

    def __init__(self, size: int, eps: float) -> None:
        """Start at scale one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Block(nn.Module):
    """Attention over the whole row and a gated feed-forward, each behind a norm."""

    def __init__(self, shape: MaskedShape) -> None:
        """Seven projections without bias."""
        super().__init__()
        width, inner = shape.d_model, shape.mlp_hidden_size
        self.heads = shape.n_heads
        self.attn_norm = RmsNorm(width, shape.rms_norm_eps)
        self.ff_norm = RmsNorm(width, shape.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        rows, tokens, width = x.shape
        split = (rows, tokens, self.heads, width // self.heads)
        h = self.attn_norm(x)
        q, k, v = (
            p(h).view(split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        # Written out: torch's fused backward is slower than all products together on a CPU.
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
        mixed = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.attn_out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        h = self.ff_norm(x)
        y: Tensor = x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))
        return y


class Transformer(nn.Module):
    """Embedding, blocks, the last norm and the output layer."""

    def __init__(self, shape: MaskedShape) -> None:
        """Build the stack."""
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_f = RmsNorm(shape.d_model, shape.rms_norm_eps)
        self.ff_out = nn.Linear(shape.d_model, shape.vocab_size, bias=False)


class MaskedNetwork(nn.Module):
    """Logits for every position of a row, masked or not."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: MaskedShape) -> None:
        """Random weights: normal, smaller where a residual is written."""
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict({"transformer": Transformer(shape)})
        cos, sin = _rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("attn_out.weight", "ff_out.weight")) and "blocks" in name
                depth = (2 * shape.n_layers) ** 0.5 if writes else 1.0
                nn.init.normal_(parameter, std=0.04 / depth)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of token ids (B, T)."""
        transformer = cast(Transformer, self.model["transformer"])
        x = transformer.wte(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in transformer.blocks:
            x = block(x, cos, sin)
        logits: Tensor = transformer.ff_out(transformer.ln_f(x))
        return logits


def save_masked(network: MaskedNetwork, directory: Path) -> None:
    """Write bfloat16 weights and ``config.json``, LLaDA's layout."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in network.state_dict().items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    shape = network.shape
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        **vars(shape),
        "embedding_size": shape.vocab_size,
        "n_kv_heads": shape.n_heads,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rope": True,
        "include_bias": False,
        "weight_tying": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_masked(directory: Path, device: str = "cpu") -> MaskedNetwork:
    """Read a directory that `save_masked` wrote; computes in float32."""
    config = json.loads((directory / "config.json").read_text())
    network = MaskedNetwork(
        MaskedShape(**{name: config[name] for name in MaskedShape.__dataclass_fields__})
    )
    weights = load_file(directory / "model.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.to(device).eval()


def _rotations(shape: MaskedShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (positions, D) each, halves repeated."""
    width = shape.d_model // shape.n_heads
    half = torch.arange(0, width, 2, dtype=torch.float32) / width
    places = torch.arange(shape.max_sequence_length, dtype=torch.float32)
    angles = torch.outer(places, 1.0 / shape.rope_theta**half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
