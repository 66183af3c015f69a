"""The radix trie over cached pages: an index without tensors.

Every edge is one page of at most `page_tokens` token ids. Only full pages have children; a shorter
page is a leaf, kept so that a prefix can be found again to the token. Two siblings may begin alike:
the shared head of a page that diverges inside is stored twice, which is why a branch costs at most
one page beyond its own tokens.

A *lock* keeps a path: locking a node locks its ancestors. Unlocked leaves can be evicted, least
recently used first. Not known here: how many pages are free, and what the pages hold.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from engines.base import TokenIds
from engines.errors import InvariantError

_MAX_STALE: Final = 64  # entries kept beside two for every page before a clean-up


class Node:
    """One cached page: `tokens` are the edge's ids, `page` the page that holds their KV."""

    __slots__ = ("children", "last_used", "locks", "page", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: TokenIds, page: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.children: dict[int, list[Node]] = {}
        self.locks = 0  # direct locks, plus one for every locked child
        self.last_used = 0


@dataclass(frozen=True)
class Match:
    """The longest cached prefix of some tokens.

    Attributes:
        nodes: Full pages, root side first.
        partial: The page whose first `partial_tokens` ids come next, if any.
        partial_tokens: Ids matched inside `partial`.
        length: Tokens matched in all.
    """

    nodes: tuple[Node, ...] = ()
    partial: Node | None = None
    partial_tokens: int = 0
    length: int = 0

    @property
    def leaf(self) -> Node | None:
        """The deepest node matched."""
        return self.partial or (self.nodes[-1] if self.nodes else None)


def _is_evictable(node: Node) -> bool:
    """Whether `node` is an unlocked leaf that is still in the trie."""
    return node.parent is not None and not node.locks and not node.children


def _full_pages(node: Node | None, size: int) -> list[Node]:
    """The full pages from the root down to `node`."""
    pages = []
    while node is not None and node.parent is not None:
        if len(node.tokens) == size:
            pages.append(node)
        node = node.parent
    return pages[::-1]


def _common(a: TokenIds, b: TokenIds, known: int) -> int:
    """Length of the longest common prefix of `a` and `b`, of which `known` tokens are equal."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:  # most often, and much faster than token by token
        return size
    return next((at for at in range(known, size) if a[at] != b[at]), size)


@dataclass
class Trie:
    """Cached pages by content, one root per tenant; guarded by the ledger's lock."""

    page_tokens: int
    num_nodes: int = 0
    num_locked: int = 0
    _roots: dict[str, Node] = field(default_factory=dict)
    _clock: Iterator[int] = field(default_factory=itertools.count)
    _evictable: list[tuple[int, int, Node]] = field(default_factory=list)
    _serial: Iterator[int] = field(default_factory=itertools.count)

    def match(self, tenant: str, tokens: TokenIds, known: Node | None = None) -> Match:
        """The longest cached prefix of `tokens`; locks nothing and splits nothing.

        Args:
            tenant: Whose trie.
            tokens: What to look for.
            known: A node whose ancestors are on their path, in the trie; the search begins there.
        """
        node = self._roots.get(tenant)
        if node is None:
            return Match()
        size, end = self.page_tokens, len(tokens)
        nodes = _full_pages(known, size)[: end // size]
        # What a claim ends in may be a page of which it found only the beginning.
        if nodes and nodes[-1].tokens != tokens[size * (len(nodes) - 1) : size * len(nodes)]:
            nodes.pop()
        node, at = nodes[-1] if nodes else node, size * len(nodes)
        while at < end:
            head = tokens[at : at + size]
            best, best_common = None, 0
            # The newest first: of a growing branch it is the longest, and spares the others.
            for child in reversed(node.children.get(head[0], ())):
                longer = best_common + 1
                if child.tokens[:longer] == head[:longer] and len(child.tokens) >= longer:
                    best, best_common = child, _common(child.tokens, head, longer)
            if best is None:
                break
            if best_common < size:
                return Match(tuple(nodes), best, best_common, at + best_common)
            nodes.append(best)
            node, at = best, at + size
        return Match(tuple(nodes), None, 0, at)

    def insert(
        self, tenant: str, parent: Node | None, tokens: TokenIds, page: int
    ) -> tuple[Node, bool]:
        """Add one page under `parent` (None is the root).

        Returns:
            The node for `tokens`, and whether `page` was taken: False when these tokens were
            already cached, in which case `page` stays the caller's.
        """
        if parent is None:
            parent = self._roots.setdefault(tenant, Node(None, (), -1))
        elif len(parent.tokens) != self.page_tokens:
            raise InvariantError(
                f"a page of {len(parent.tokens)} of {self.page_tokens} tokens cannot have children"
            )
        siblings = parent.children.setdefault(tokens[0], [])
        for child in siblings:
            if child.tokens == tokens:
                return child, False
        node = Node(parent, tokens, page)
        siblings.append(node)
        self.num_nodes += 1
        self._offer(node)
        return node, True

    def lock(self, node: Node | None) -> None:
        """Keep `node` and its ancestors."""
        while node is not None and node.parent is not None:
            node.locks += 1
            if node.locks > 1:
                return
            self.num_locked += 1
            node = node.parent

    def unlock(self, node: Node | None) -> list[int]:
        """Give one lock back.

        Returns:
            Pages freed at once: a short page that a longer sibling covers is worth nothing to
            anyone.
        """
        freed: list[int] = []
        now = next(self._clock)
        while node is not None and node.parent is not None:
            if node.locks <= 0:
                raise InvariantError(f"page {node.page} unlocked more often than locked")
            node.locks -= 1
            if node.locks:
                return freed
            self.num_locked -= 1
            node.last_used = now
            parent = node.parent
            if self._is_covered(node):
                self._remove(node)
                freed.append(node.page)
            else:
                self._offer(node)
            node = parent
        return freed

    def evict(self, count: int) -> list[int]:
        """Drop unlocked leaves, least recently used first, for up to `count` pages."""
        freed: list[int] = []
        while len(freed) < count and self._evictable:
            stamp, _, node = heapq.heappop(self._evictable)
            if node.last_used != stamp or not _is_evictable(node):
                continue  # stale entry: used, grown or gone since it was offered
            parent = node.parent
            freed.append(node.page)
            self._remove(node)
            if parent is not None:
                self._offer(parent)
        return freed

    def walk(self) -> Iterator[Node]:
        """All nodes, parents first."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            if node.parent is not None:
                yield node
            for siblings in node.children.values():
                pending.extend(siblings)

    def _offer(self, node: Node) -> None:
        """Remember `node` as a candidate for eviction if it is one."""
        if not _is_evictable(node):
            return
        heapq.heappush(self._evictable, (node.last_used, next(self._serial), node))
        if len(self._evictable) > 2 * self.num_nodes + _MAX_STALE:
            # Without evictions nothing else would ever take the stale entries out.
            live = {entry[2]: entry for entry in self._evictable if entry[0] == entry[2].last_used}
            self._evictable = [entry for node, entry in live.items() if _is_evictable(node)]
            heapq.heapify(self._evictable)

    def _is_covered(self, node: Node) -> bool:
        size = len(node.tokens)
        if size == self.page_tokens or node.parent is None:
            return False
        siblings = node.parent.children.get(node.tokens[0], ())
        return any(s is not node and s.tokens[:size] == node.tokens for s in siblings)

    def _remove(self, node: Node) -> None:
        parent = node.parent
        if parent is None:
            raise InvariantError("the root cannot be removed")
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        node.parent = None
        self.num_nodes -= 1
        if parent.parent is None and not parent.children:
            for tenant, root in list(self._roots.items()):
                if root is parent:
                    del self._roots[tenant]
