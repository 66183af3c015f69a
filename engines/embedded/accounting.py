"""Who owns which page: free list, claims, reservations and the integrity check. No tensors.

Every page is in exactly one of three places::

    free list          | trie, unlocked  | trie, locked + own pages of running sequences
    ───────────────────┼─────────────────┼─────────────────────────────────────────────
    free               | cached          | claimed
                         (evictable)

A running sequence owns the pages behind its locked path outright; they enter the trie when it is
sealed. A reservation sets pages aside for a sequence that will need them soon, consecutive ones
where there are, so that attention can read its keys in place; until used they count as free, and a
sequence in need may take them from another's reservation.

All methods need `lock` held; it guards the trie, this ledger and every claim, and is never held
during a forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.base import TokenIds
from engines.embedded.trie import Node, Trie
from engines.errors import InvariantError

_SLABS: Final = 32  # the share of the pool that eviction frees at once


@dataclass(frozen=True)
class PageCounts:
    """Pages by state; they add up to the pool."""

    free: int
    cached: int
    claimed: int


class Ledger:
    """Pages given out and taken back.

    Args:
        num_pages: Pages in the pool.
        page_tokens: Tokens in a page.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.lock = threading.Lock()
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.trie = Trie(page_tokens)
        self.num_reserved = 0
        self.peak_claimed = 0
        self._free = list(range(num_pages - 1, -1, -1))  # taken from the end: lowest page first
        self._is_sorted = True
        self._num_own = 0

    @property
    def available(self) -> int:
        """Pages that can be taken now without breaking a promise."""
        return len(self._free) + self.trie.num_nodes - self.trie.num_locked

    def counts(self) -> PageCounts:
        """Pages by state."""
        claimed = self.trie.num_locked + self._num_own
        free = len(self._free) + self.num_reserved
        return PageCounts(free, self.trie.num_nodes - self.trie.num_locked, claimed)

    def take(self, count: int) -> list[int]:
        """Own `count` pages; evicts cached ones as needed.

        Raises:
            InvariantError: Fewer are available.
        """
        return self.use(self.reserve(count))

    def reserve(self, count: int) -> list[int]:
        """Set `count` pages aside, consecutive ones where there are; they still count as free.

        Raises:
            InvariantError: Fewer are available.
        """
        if len(self._free) < count:
            self._evict(count - len(self._free))
        if len(self._free) < count:
            raise InvariantError(
                f"{count} pages asked for; {len(self._free)} free, {self.counts()}"
            )
        start = self._run_of(count)
        if start is None and self._evict(1):
            start = self._run_of(count)
        if start is None:
            start = len(self._free) - count
        pages = self._free[start : start + count][::-1]
        del self._free[start : start + count]
        self.num_reserved += count
        return pages

    def take_apart(self) -> int:
        """Own one page that breaks no run of free ones, where there is a choice.

        Raises:
            InvariantError: None is available.
        """
        page = self.reserve(1)[0]
        if self._free:  # sorted by `reserve`: the highest page is in front
            self._free.append(page)
            page = self._free.pop(0)
        return self.use([page])[0]

    def use(self, pages: list[int]) -> list[int]:
        """Own pages set aside before."""
        self.num_reserved -= len(pages)
        self._num_own += len(pages)
        self.peak_claimed = max(self.peak_claimed, self.trie.num_locked + self._num_own)
        return pages

    def unreserve(self, pages: Sequence[int]) -> None:
        """Return pages set aside."""
        self.num_reserved -= len(pages)
        self._put_free(pages)

    def give(self, pages: Sequence[int]) -> None:
        """Return owned pages unread."""
        self._num_own -= len(pages)
        self._put_free(pages)

    def lock_path(self, node: Node | None) -> None:
        """Claim a cached path."""
        self.trie.lock(node)
        self.peak_claimed = max(self.peak_claimed, self.trie.num_locked + self._num_own)

    def unlock_path(self, node: Node | None) -> None:
        """Give a claim on a cached path back."""
        self._put_free(self.trie.unlock(node))

    def seal(
        self, tenant: str, parent: Node | None, tokens: TokenIds, pages: Sequence[int]
    ) -> list[Node]:
        """Move owned pages into the trie under `parent`, whose lock passes on to the last node.

        Pages whose tokens were cached meanwhile are freed, and the cached ones take their place.

        Args:
            tenant: Whose trie.
            parent: The locked node in front of `tokens`; None is the root.
            tokens: What the pages hold; the last page may be short.
            pages: One per started page of `tokens`.

        Returns:
            The nodes now standing for `pages`. The caller holds one lock on the last of them.
        """
        size = self.page_tokens
        if len(pages) != -(-len(tokens) // size):
            raise InvariantError(f"{len(pages)} pages for {len(tokens)} tokens of {size} a page")
        nodes: list[Node] = []
        node = parent
        for i, page in enumerate(pages):
            node, taken = self.trie.insert(tenant, node, tokens[i * size : (i + 1) * size], page)
            self._num_own -= 1
            if not taken:
                self._put_free((page,))
            nodes.append(node)
        if nodes:
            self.trie.lock(nodes[-1])
            self.unlock_path(parent)
        return nodes

    def reset_peak(self) -> None:
        """Forget the largest number of claimed pages seen."""
        self.peak_claimed = self.counts().claimed

    def check(self) -> None:
        """Recount everything.

        Raises:
            InvariantError: A page is lost or owned twice, or a lock count is wrong.
        """
        nodes = list(self.trie.walk())
        cached = [node.page for node in nodes]
        if len(set(cached) | set(self._free)) != len(cached) + len(self._free):
            raise InvariantError("a page is free and cached, or cached twice")
        total = len(self._free) + self.num_reserved + len(cached) + self._num_own
        if total != self.num_pages or self.num_reserved < 0 or self._num_own < 0:
            raise InvariantError(
                f"free {len(self._free)} + reserved {self.num_reserved} + cached {len(cached)} "
                f"+ own {self._num_own} != {self.num_pages} pages"
            )
        locked = sum(1 for node in nodes if node.locks)
        if locked != self.trie.num_locked or len(nodes) != self.trie.num_nodes:
            raise InvariantError(f"{locked} nodes locked, {self.trie.num_locked} on the books")
        for node in nodes:
            below = sum(1 for group in node.children.values() for child in group if child.locks)
            if node.locks < below:
                raise InvariantError(f"page {node.page} has {node.locks} locks, {below} from below")

    def _evict(self, count: int) -> bool:
        """Free at least `count` cached pages if there are as many; whether there were any.

        More than asked for go at once: neighbours were written together and are forgotten together,
        so that a slab of them gives runs of free pages where single ones would leave holes.
        """
        freed = self.trie.evict(max(count, self.num_pages // _SLABS))
        self._put_free(freed)
        return bool(freed)

    def _run_of(self, count: int) -> int | None:
        """Index in the sorted free list of the lowest run of `count` pages."""
        if not self._is_sorted:
            self._free.sort(reverse=True)  # nearly sorted already, which is cheap
            self._is_sorted = True
        free = self._free
        if count < 2:
            return len(free) - count
        for start in range(len(free) - count, -1, -1):
            if free[start] - free[start + count - 1] == count - 1:
                return start
        return None

    def _put_free(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)
        self._is_sorted = False
