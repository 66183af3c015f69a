"""The decoder's forward pass over a paged batch.

Letters: N tokens of the batch, C hidden width, Hq query heads, Hk key/value heads, D head width.
It knows no sequences, no sampling and no cache policy: positions, slots and the attention plan come
from outside.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu

from engines.embedded.attention import Plan, attend
from engines.embedded.config import DecoderConfig
from engines.embedded.pages import KvPool
from engines.embedded.weights import DecoderWeights, LayerWeights


class RmsNorm:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis.

    In float32 on a CPU by way of the Euclidean norm: half the kernels of torch's function, which
    a single token's pass feels.

    Args:
        eps: Of the model.
        device: Where it runs.
    """

    def __init__(self, eps: float, device: torch.device) -> None:
        self._eps = eps
        self._root_eps = torch.tensor(eps, device=device).sqrt()

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Normalise (…, C) with a weight (C,)."""
        width = x.shape[-1]
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return torch.nn.functional.rms_norm(x, (width,), weight, self._eps)
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(width**-0.5)
        return torch.div(x, root.hypot_(self._root_eps)).mul_(weight)


class Decoder:
    """A Llama- or Qwen-shaped decoder.

    Args:
        config: Its shapes.
        weights: In the dtype to compute in.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self._scale = config.head_dim**-0.5
        self._norm = RmsNorm(config.eps, self.device)
        self._rotations = self._rotation_table()  # (context, D / 2) complex64

    @torch.inference_mode()
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor | slice,
        pool: KvPool,
        plan: Plan,
        row_of: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run N tokens and store their keys and values.

        Args:
            tokens: (N,) int64 ids.
            positions: (N,) int64 positions in their sequences.
            slots: Where their keys and values go; (N,) int64 or a slice.
            pool: The cache.
            plan: Which slots each token attends to, its own included.
            row_of: Which token's keys and values go to each slot, where there are more slots than
                tokens; as long as `slots`, int64.

        Returns:
            (N, C) hidden states after the final norm.
        """
        weights, norm = self.weights, self._norm
        x = weights.embedding.index_select(0, tokens)
        rotation = self._rotations.index_select(0, positions).unsqueeze(1)
        for number, layer in enumerate(weights.layers):
            x = self._attention(x, layer, number, rotation, slots, pool, plan, row_of)
            h = norm(x, layer.norm_mlp)
            gate, up = linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, dim=1)
            x = _add_linear(x, silu(gate).mul_(up), layer.down, layer.down_bias)
        return norm(x, weights.norm)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits (N, vocab) float32 of hidden states (N, C)."""
        return linear(hidden, self.weights.head).float()

    def _attention(
        self,
        x: torch.Tensor,
        layer: LayerWeights,
        number: int,
        rotation: torch.Tensor,
        slots: torch.Tensor | slice,
        pool: KvPool,
        plan: Plan,
        row_of: torch.Tensor | None,
    ) -> torch.Tensor:
        config = self.config
        heads, kv_heads, width = config.heads, config.kv_heads, config.head_dim
        h = self._norm(x, layer.norm_in)
        qkv = linear(h, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, width)
        qk = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            q_normed = self._norm(qk[:, :heads], layer.q_norm)
            k_normed = self._norm(qk[:, heads:], layer.k_norm)
            qk = torch.cat((q_normed, k_normed), dim=1)
        pairs = torch.view_as_complex(qk.float().view(len(x), -1, width // 2, 2))
        qk = torch.view_as_real(pairs * rotation).flatten(-2).to(self.dtype)
        k, v = qk[:, heads:], qkv[:, heads + kv_heads :]
        if row_of is not None:
            k, v = k[row_of], v[row_of]
        pool.write(number, slots, k, v)
        out = attend(qk[:, :heads], pool.pages[number], plan, self._scale)
        return _add_linear(x, out.reshape(len(x), -1), layer.out, layer.out_bias)

    def _rotation_table(self) -> torch.Tensor:
        config = self.config
        frequencies, factor = config.rope.frequencies(config.head_dim, config.context_tokens)
        steps = torch.arange(config.context_tokens, dtype=torch.float32)
        # float32 like the published implementations: the angles of late positions differ otherwise.
        angles = torch.outer(steps, torch.tensor(frequencies, dtype=torch.float32))
        return torch.polar(torch.full_like(angles, factor), angles).to(self.device)


def _add_linear(
    x: torch.Tensor, h: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x + h @ matrix.T (+ bias)`` with the sum inside the product."""
    out = torch.addmm(x, h, matrix.t())
    return out if bias is None else out.add_(bias)
