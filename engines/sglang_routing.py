"""Which worker a prompt goes to: the one that holds the longest part of it, unless it is swamped.

Workers keep what they computed in a radix cache of their own. `PrefixMap` remembers what was sent
to each, in blocks of tokens, so that the branches of a tree stay where their common part is. It
guesses: a worker evicts what it likes. A wrong guess costs a prefill, never an answer. Plain data;
no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engines.base import TokenIds

BLOCK_TOKENS: Final = 16
_LEAST_BLOCKS: Final = 64


@dataclass(frozen=True)
class Routing:
    """When affinity gives way.

    Attributes:
        min_match: A worker is preferred for its cache when it holds this share of the prompt.
        max_imbalance: It is passed over when it runs more than so many requests more than the
            least loaded one …
        max_load_ratio: … and more than so many times as many.
    """

    min_match: float = 0.3
    max_imbalance: int = 8
    max_load_ratio: float = 1.5


class PrefixMap:
    """What each worker is believed to hold, least recently used blocks forgotten first.

    Args:
        capacity_tokens: Tokens that each worker's cache holds, one per worker.
        routing: The thresholds.
    """

    def __init__(self, capacity_tokens: Sequence[int], routing: Routing) -> None:
        self._routing = routing
        self._known: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacity_tokens]
        self._most = [max(_LEAST_BLOCKS, size // BLOCK_TOKENS) for size in capacity_tokens]

    def choose(self, ids: TokenIds, tenant: str, loads: Mapping[int, int]) -> tuple[int, int]:
        """The worker for a prompt, and how many of its tokens that one is believed to hold.

        Args:
            ids: The prompt.
            tenant: Whose cache it is in.
            loads: Requests running, by worker; only these are chosen from.
        """
        keys = list(_keys(ids, tenant))
        held = {worker: self._held(worker, keys) for worker in loads}
        best = max(loads, key=lambda worker: (held[worker], -loads[worker], -worker))
        if not self._is_preferred(best, held[best] * BLOCK_TOKENS, len(ids), loads):
            best = min(loads, key=lambda w: (loads[w], len(self._known[w]), w))
        return best, held[best] * BLOCK_TOKENS

    def learn(self, worker: int, ids: TokenIds, tenant: str) -> None:
        """This worker has computed `ids`."""
        known = self._known[worker]
        for key in _keys(ids, tenant):
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._most[worker]:
            known.popitem(last=False)

    def forget(self, worker: int, capacity_tokens: int) -> None:
        """This worker's cache is empty: it was started again."""
        self._known[worker].clear()
        self._most[worker] = max(_LEAST_BLOCKS, capacity_tokens // BLOCK_TOKENS)

    def _held(self, worker: int, keys: Sequence[int]) -> int:
        known = self._known[worker]
        return next((at for at, key in enumerate(keys) if key not in known), len(keys))

    def _is_preferred(self, worker: int, held: int, size: int, loads: Mapping[int, int]) -> bool:
        least, mine, routing = min(loads.values()), loads[worker], self._routing
        is_swamped = mine - least > routing.max_imbalance and mine > routing.max_load_ratio * least
        return held > 0 and held >= routing.min_match * size and not is_swamped


def _keys(ids: TokenIds, tenant: str) -> Iterator[int]:
    """A key per whole block, each standing for all tokens up to its end."""
    key = hash(tenant)
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, ids[start : start + BLOCK_TOKENS]))
        yield key
