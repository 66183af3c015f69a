"""A plain Llama in torch, for training and for the rollouts that training needs.

Parameter names are those of Hugging Face's ``LlamaForCausalLM`` so that a state dict is a
checkpoint. It knows nothing of padding masks, of serving, or of other model families: rows are
padded on the right and causal attention never looks there.

Letters in shape comments: B rows, T tokens, H heads, D head_dim, C hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a network; the defaults are those of every sapling."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


class Norm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        """Start at scale one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        """Four square projections without bias."""
        super().__init__()
        size = shape.hidden_size
        self.num_heads, self.head_dim = shape.num_attention_heads, shape.head_dim
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: (B, H, T, D) each."""
        rows, tokens, _ = x.shape
        split = (rows, tokens, self.num_heads, self.head_dim)
        q = self.q_proj(x).view(split).transpose(1, 2)
        k = self.k_proj(x).view(split).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        return _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype), v

    def join(self, mixed: Tensor) -> Tensor:
        """(B, H, T, D) back to (B, T, C), through the output projection."""
        rows, _, tokens, _ = mixed.shape
        joined: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))
        return joined

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over the row itself."""
        q, k, v = self.project(x, cos, sin)
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Mlp(nn.Module):
    """The gated feed-forward block (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        """Three projections without bias."""
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        """Attention and feed-forward, each behind a norm."""
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        """Build the stack."""
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def blocks(self) -> list[Layer]:
        """The layers, in order."""
        return cast("list[Layer]", list(self.layers))


class Llama(nn.Module):
    """A decoder whose output layer is its embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        """Random weights: normal with deviation 0.02, smaller where a residual is written."""
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        cos, sin = _rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = (2 * shape.num_hidden_layers) ** 0.5 if writes else 1.0
                nn.init.normal_(parameter, std=0.04 / depth)

    def hidden(self, ids: Tensor) -> Tensor:
        """Final-norm hidden states (B, T, C) of token ids (B, T)."""
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        y: Tensor = self.model.norm(x)
        return y

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) to (…, vocabulary)."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of token ids (B, T)."""
        return self.logits(self.hidden(ids))


def save_checkpoint(network: Llama, directory: Path, bos_id: int, eos_id: int, pad_id: int) -> None:
    """Write bf16 weights, ``config.json`` and ``generation_config.json``, HF layout."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in network.state_dict().items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(network.shape),
        "num_key_value_heads": network.shape.num_attention_heads,
        "head_dim": network.shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **special,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": True, "temperature": 1.0, **special}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load_checkpoint(
    directory: Path, device: str = "cpu", weights: Mapping[str, Tensor] | None = None
) -> Llama:
    """Read a directory that ``save_checkpoint`` wrote; computes in float32.

    Args:
        directory: where it is.
        device: where to compute.
        weights: tensors by name instead of those in the directory.
    """
    config = json.loads((directory / "config.json").read_text())
    shape = Shape(**{name: config[name] for name in Shape.__dataclass_fields__})
    network = Llama(shape)
    if weights is None:
        weights = load_file(directory / "model.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.to(device).eval()


def _rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (positions, D) each, halves repeated as Hugging Face does."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(
        torch.arange(shape.max_position_embeddings, dtype=torch.float32),
        1.0 / shape.rope_theta**half,
    )
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
