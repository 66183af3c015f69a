"""Counts of what followed each of the last tokens, up to a fixed length: a suffix trie.

Node and match bounds make it a bounded stand-in for a suffix tree: strings up to `depth` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from engines.drafters.foreign import token_ids

ReadNode: TypeAlias = tuple[int, int, int]
"""Place of the parent or -1, token, count."""

_MOST_COUNTED: Final = 2**63
"""No trie comes near it; counts beyond it could not be made floats any more."""


class Node:
    """One string that occurred: how often, and what came after it."""

    __slots__ = ("children", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0  # sum of the children's counts
        self.children: dict[int, Node] = {}


class SuffixTrie:
    """Every string of at most `depth` tokens of what it was given, at most `max_nodes` nodes."""

    def __init__(self, depth: int, max_nodes: int) -> None:
        self.depth = depth
        self.max_nodes = max_nodes
        self.num_nodes = 0
        self._root = Node()

    @property
    def is_full(self) -> bool:
        """Whether the next token may find no room; it is then counted only where it is known."""
        return self.num_nodes + self.depth > self.max_nodes

    def match(self, tail: Sequence[int], most: int | None = None) -> list[Node]:
        """Nodes of the suffixes of `tail` that occurred, from the empty one to the longest."""
        found = [self._root]
        longest = min(len(tail), self.depth if most is None else min(most, self.depth))
        for length in range(1, longest + 1):
            node: Node | None = self._root
            for token in tail[len(tail) - length :]:
                node = node.children.get(token) if node is not None else None
                if node is None:
                    return found
            found.append(node or self._root)
        return found

    def advance(self, nodes: Sequence[Node], token: int) -> list[Node]:
        """`match` after one more token, from the match before it."""
        found = [self._root]
        for node in nodes:
            child = node.children.get(token)
            if child is None:
                break
            found.append(child)
        return found

    def learn(self, context: Sequence[int], tokens: Sequence[int]) -> None:
        """Count `tokens`, which follow `context`; the context itself was counted before."""
        active = self.match(context[max(0, len(context) - self.depth) :], self.depth - 1)
        for token in tokens:
            following = [self._root]
            for node in active:
                child = node.children.get(token)
                if child is None:
                    if self.num_nodes >= self.max_nodes:
                        break
                    child = node.children[token] = Node()
                    self.num_nodes += 1
                child.count += 1
                node.total += 1
                following.append(child)
            active = following[: self.depth]

    def dump(self, most: int) -> list[ReadNode]:
        """At most `most` nodes, level by level: (place of the parent or -1, token, count)."""
        found: list[ReadNode] = []
        level = [(-1, self._root)]
        for place, node in level:  # grows while it is read
            for token, child in node.children.items():
                if len(found) >= most:
                    return found
                level.append((len(found), child))
                found.append((place, token, child.count))
        return found

    def load(self, nodes: Sequence[ReadNode]) -> None:
        """Raise counts to another trie's where those are higher, as far as there is room.

        Replicas exchange tries again and again: theirs holds what it had from here, so a sum would
        count that once more each time.
        """
        placed: dict[int, tuple[Node, int]] = {-1: (self._root, 0)}
        for place, (above, token, count) in enumerate(nodes):
            parent, depth = placed.get(above, (None, 0))
            if parent is None or depth >= self.depth:
                continue
            child = parent.children.get(token)
            if child is None:
                if self.num_nodes >= self.max_nodes:
                    continue
                child = parent.children[token] = Node()
                self.num_nodes += 1
            gain = max(0, count - child.count)
            child.count += gain
            parent.total += gain
            placed[place] = (child, depth + 1)


class Generations:
    """A trie without end in bounded room: when the young one is full, it replaces the old one."""

    def __init__(self, depth: int, max_nodes: int) -> None:
        self._half = max_nodes // 2
        self.young = SuffixTrie(depth, self._half)
        self.old = SuffixTrie(depth, self._half)

    @property
    def num_nodes(self) -> int:
        """Nodes of both."""
        return self.young.num_nodes + self.old.num_nodes

    def learn(self, context: Sequence[int], tokens: Sequence[int]) -> None:
        """Count `tokens` after `context`."""
        if self.young.is_full:
            self.old, self.young = self.young, SuffixTrie(self.young.depth, self._half)
        self.young.learn(context, tokens)

    def dump(self, most: int) -> list[ReadNode]:
        """The young nodes nearest the root: (place of the parent or -1, token, count)."""
        return self.young.dump(most)

    def load(self, nodes: Sequence[ReadNode]) -> None:
        """Raise counts to those of another's `dump`."""
        self.young.load(nodes)


def read_nodes(dumped: Sequence[Sequence[int]]) -> list[ReadNode]:
    """What `dump` gave, for `load`.

    Raises:
        ValueError, TypeError: It gave something else.
    """
    found = [(above, token, count) for above, token, count in dumped]
    for above, token, count in found:
        token_ids((above + 1, token))
        if type(count) is not int or not 1 <= count < _MOST_COUNTED:
            raise ValueError(f"{str(count)[:60]} is no count")
    return found
