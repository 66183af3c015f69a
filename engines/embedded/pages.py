"""The KV pool: tensors only.

A page holds the keys and values of `page_tokens` consecutive tokens. A layer is one tensor
``(pages, page_tokens, kv_heads, 2 * head_dim)``, a token's key in the first half of the last axis:
pages are whole pieces of memory, so that gathering scattered ones is as fast as copying.
Slot ``s`` of the flat view is token ``s % page_tokens`` of page ``s // page_tokens``. Who may use
which page is not known here: see `engines.embedded.accounting`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class KvPool:
    """Keys and values of every cached token.

    Args:
        num_layers: Decoder layers L.
        num_pages: Pages in all.
        page_tokens: Tokens in a page, P.
        kv_heads: Key/value heads H.
        head_dim: Width of a head, D.
        dtype: Of the cache; the model's.
        device: Where it lies.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        shape = (num_pages, page_tokens, kv_heads, 2 * head_dim)
        # Zeros, not empty: masked slots are multiplied by a weight of 0, and 0 * NaN would be NaN.
        self.pages = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._slots = [layer.flatten(0, 1) for layer in self.pages]

    def write(
        self, layer: int, slots: torch.Tensor | slice, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Store `k` and `v`, each (N, H, D), at N `slots` of `layer`."""
        if isinstance(slots, slice):
            rows, width = self._slots[layer][slots], k.shape[-1]
            rows[..., :width].copy_(k)
            rows[..., width:].copy_(v)
        else:
            self._slots[layer].index_copy_(0, slots, torch.cat((k, v), dim=-1))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, destination) pairs; no destination is a source."""
        if not pairs:
            return
        device = self.pages[0].device
        source = torch.tensor([s for s, _ in pairs], device=device)
        destination = torch.tensor([d for _, d in pairs], device=device)
        for layer in self.pages:
            layer.index_copy_(0, destination, layer.index_select(0, source))

    def move(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy slots; all are read before any is written."""
        if not sources:
            return
        device = self.pages[0].device
        source = torch.tensor(sources, device=device)
        destination = torch.tensor(destinations, device=device)
        for layer in self._slots:
            layer.index_copy_(0, destination, layer.index_select(0, source))
