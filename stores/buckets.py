"""Token buckets in memory, bounded, forgotten when full."""

from __future__ import annotations

import heapq

from stores.base import Grant


class Buckets:
    """Token buckets by name. Each is two numbers: tokens at a time.

    A heap of (time when full, name) finds the ones that may be forgotten; entries of a bucket that
    was used since are stale and skipped. Over the bound, the bucket nearest to full goes first,
    because a full bucket and a forgotten one are the same.

    Args:
        max_buckets: How many to remember.
    """

    def __init__(self, max_buckets: int) -> None:
        self._max_buckets = max_buckets
        self._level: dict[tuple[str, str], tuple[float, float, float]] = {}  # tokens, at, full at
        self._by_full: list[tuple[float, tuple[str, str]]] = []

    def take(
        self, name: tuple[str, str], rate: float, capacity: float, cost: float, now: float
    ) -> Grant:
        """Take `cost` at time `now` or say how long to wait; see `stores.base.Store.bucket`."""
        tokens, at, _ = self._level.get(name, (capacity, now, now))
        tokens = min(capacity, tokens + max(0.0, now - at) * rate)
        # Whoever waits the `wait_s` it was told must not be refused over the last bit of a float.
        is_allowed = cost <= tokens + 1e-9 * capacity
        if is_allowed:
            tokens = min(capacity, max(0.0, tokens - cost))
        full_at = now + (capacity - tokens) / rate
        self._level[name] = (tokens, now, full_at)
        heapq.heappush(self._by_full, (full_at, name))
        self._forget(now)
        if is_allowed:
            return Grant(True, 0.0, tokens)
        wait_s = (cost - tokens) / rate if cost <= capacity else float("inf")
        return Grant(False, wait_s, tokens)

    def __len__(self) -> int:
        return len(self._level)

    def clear(self) -> None:
        """Forget all of them."""
        self._level.clear()
        self._by_full.clear()

    def _forget(self, now: float) -> None:
        while self._by_full:
            full_at, name = self._by_full[0]
            known = self._level.get(name)
            is_stale = known is None or known[2] != full_at
            is_full = not is_stale and full_at <= now
            if not (is_stale or is_full or len(self._level) > self._max_buckets):
                break
            heapq.heappop(self._by_full)
            if not is_stale:
                del self._level[name]
        if len(self._by_full) > 2 * len(self._level) + 64:
            self._by_full = [(level[2], name) for name, level in self._level.items()]
            heapq.heapify(self._by_full)
