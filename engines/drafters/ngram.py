"""Prompt lookup: copy what followed the last n tokens when they occurred before.

Source: prompt lookup decoding (Saxena 2023), with vLLM's choice of the longest n-gram at its
earliest occurrence. It keeps nothing, so there is nothing to share, and no probabilities: all
`logps` are 0. It reads the branch's whole context.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engines.drafters.base import EMPTY, DrafterStats, Shape, TokenTree, chain
from engines.drafters.lessons import Learner
from engines.drafters.opening import build, pack, unpack

_KIND: Final = "ngram/1"


class Ngram(Learner):
    """Copies after the longest repeated n-gram of `min_match` to `max_match` tokens."""

    shape: Shape = "chain"
    reach: int | None = None
    num_tops = 0

    def __init__(self, min_match: int = 2, max_match: int = 5) -> None:
        self._lengths = range(max_match, min_match - 1, -1)

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """What followed the earliest occurrence of the longest repeated suffix."""
        text = array("q", context)
        for length in self._lengths:
            at = _first(text, length)
            if at is not None:
                copied = text[at + length : at + length + budget_nodes].tolist()
                return chain(copied, (0.0,) * len(copied))
        return EMPTY

    def snapshot(self, *, tenant: str) -> bytes:
        """Nothing, packed."""
        return pack(_KIND, {})

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Check the kind."""
        unpack(_KIND, data)

    def stats(self) -> DrafterStats:
        """Always empty."""
        return DrafterStats(0, 0, 0, 0)


def _first(text: array[int], length: int) -> int | None:
    """Where the last `length` tokens occurred first, if not only at the end."""
    if len(text) <= length:
        return None
    raw, size = text.tobytes(), text.itemsize
    wanted = raw[-length * size :]
    at = raw.find(wanted)
    while at % size:
        at = raw.find(wanted, at + 1)
    return at // size if at // size < len(text) - length else None


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> Ngram:
    """Options: min_match, max_match (tokens)."""
    return build(Ngram, vocab_size, options)
