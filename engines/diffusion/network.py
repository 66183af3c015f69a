"""A bidirectional Llama- or Qwen-shaped network: every token sees the whole row, nothing is cached.

The weights are those of `engines.embedded.weights`, laid out for one product per projection.

Letters: B rows, T tokens, M spots (row and position of an asked token), C hidden width, H heads,
D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from engines.embedded.config import DecoderConfig
from engines.embedded.model import RmsNorm
from engines.embedded.weights import DecoderWeights, LayerWeights


class Network(Protocol):
    """What the batcher needs of a model. It reads no time: equal rows give equal logits."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def logits(self, ids: Tensor, lengths: Sequence[int], rows: Tensor, spots: Tensor) -> Tensor:
        """Logits of the token at each asked position.

        Args:
            ids: (B, T) int64; a row shorter than T is padded on the right with any id.
            lengths: Tokens of each row; no token sees the padding behind its row.
            rows: (M,) int64, which row.
            spots: (M,) int64, which position of it.

        Returns:
            (M, V) in the dtype of the weights.
        """


def visible(lengths: Sequence[int], width: int, device: torch.device) -> Tensor | None:
    """Which positions are no padding, (B, 1, 1, T) bool; None where there is none."""
    if all(length == width for length in lengths):
        return None
    ends = torch.tensor(lengths, device=device).view(-1, 1, 1, 1)
    return torch.arange(width, device=device) < ends


class BidirectionalNetwork:
    """LLaDA's and Dream's shape.

    Args:
        config: Its sizes.
        weights: In the dtype to compute in.
        shift: The logits that a row gives at a position are those of this many positions later:
            0 for LLaDA, 1 for Dream, whose first position reads itself.
        vocab_size: Tokens that there are; further rows of the embedding are padding.
    """

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, *, shift: int, vocab_size: int
    ) -> None:
        self._config = config
        self._weights = weights
        self._shift = shift
        self.device = weights.embedding.device
        self.vocab_size = vocab_size
        self._dtype = weights.embedding.dtype
        self._norm = RmsNorm(config.eps, self.device)
        self._rotations = self._rotation_table()  # (context, D / 2) complex64

    @torch.inference_mode()
    def logits(self, ids: Tensor, lengths: Sequence[int], rows: Tensor, spots: Tensor) -> Tensor:
        """See `Network.logits`."""
        weights = self._weights
        x = weights.embedding[ids]  # (B, T, C)
        seen = visible(lengths, ids.shape[1], self.device)
        rotation = self._rotations[: ids.shape[1]].unsqueeze(1)  # (T, 1, D / 2)
        for layer in weights.layers:
            x = self._attention(x, layer, rotation, seen)
            h = self._norm(x, layer.norm_mlp)
            gate, up = linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, layer.down, layer.down_bias)
        asked = x[rows, (spots - self._shift).clamp_min(0)]  # (M, C)
        return linear(self._norm(asked, weights.norm), weights.head[: self.vocab_size])

    def _attention(
        self, x: Tensor, layer: LayerWeights, rotation: Tensor, seen: Tensor | None
    ) -> Tensor:
        config = self._config
        heads, kv_heads, width = config.heads, config.kv_heads, config.head_dim
        h = self._norm(x, layer.norm_in)
        qkv = linear(h, layer.qkv, layer.qkv_bias)
        qkv = qkv.view(*x.shape[:2], -1, width)  # (B, T, Hq + 2Hk, D)
        pairs = torch.view_as_complex(
            qkv[..., : heads + kv_heads, :].float().view(*x.shape[:2], -1, width // 2, 2)
        )
        qk = torch.view_as_real(pairs * rotation).flatten(-2).to(self._dtype)
        q, k = qk[..., :heads, :].transpose(1, 2), qk[..., heads:, :].transpose(1, 2)
        v = qkv[..., heads + kv_heads :, :].transpose(1, 2)
        mixed = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, enable_gqa=heads != kv_heads
        )  # (B, Hq, T, D)
        return x + linear(mixed.transpose(1, 2).flatten(-2), layer.out, layer.out_bias)

    def _rotation_table(self) -> Tensor:
        config = self._config
        frequencies, factor = config.rope.frequencies(config.head_dim, config.context_tokens)
        steps = torch.arange(config.context_tokens, dtype=torch.float32)
        angles = torch.outer(steps, torch.tensor(frequencies, dtype=torch.float32))
        return torch.polar(torch.full_like(angles, factor), angles).to(self.device)
