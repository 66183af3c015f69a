"""PUCT: which leaf of a valued tree to expand next, and what its children tell those above it.

Pure bookkeeping over numbers in 0..1; it knows no engine, judge or strategy. A node is visited
once when it is judged and once for every node that is judged below it. A leaf that was selected is
in flight until `deliver`: it is not selected again, and meanwhile counts, in every node above it,
as visits of the worst value (the virtual loss), which sends the next selection elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Backup: TypeAlias = Literal["mean", "max"]
"""What a node is worth: the mean of the values in its subtree, or the largest."""


@dataclass(eq=False)
class Node:
    """One node of the tree.

    Attributes:
        value: Its own value.
        prior: Its probability among its siblings.
        parent: None for the root.
        is_open: Whether it can be expanded once.
        children: In order of creation.
        visits: Values that arrived: its own and those below.
        total: Their sum.
        best: The largest of them.
        virtual: Visits that are in flight, here or below.
        num_open: Leaves here or below that may be selected.
    """

    value: float
    prior: float = 1.0
    parent: Node | None = None
    is_open: bool = True
    children: list[Node] = field(default_factory=list)
    visits: int = 1
    total: float = field(init=False)
    best: float = field(init=False)
    virtual: int = 0
    num_open: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.best = self.value
        self.num_open = int(self.is_open)

    @property
    def upwards(self) -> Iterator[Node]:
        """This node and all above it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def worth(self, backup: Backup) -> float:
        """Q: what its subtree came to so far; what is in flight counts 0 in a mean."""
        if backup == "max":
            return self.best
        return self.total / (self.visits + self.virtual)


def score(node: Node, exploration: float, backup: Backup) -> float:
    """Q + c · P · √N(parent) / (1 + N), with visits in flight counted.

    Source: Silver et al., "Mastering the game of Go without human knowledge", 2017, Methods.
    """
    assert node.parent is not None
    above = node.parent.visits + node.parent.virtual
    bonus = node.prior * math.sqrt(above) / (1 + node.visits + node.virtual)
    return node.worth(backup) + exploration * bonus


def select(root: Node, exploration: float, backup: Backup) -> Node | None:
    """The open leaf that PUCT leads to; ties to the first created. None when there is none."""
    if not root.num_open:
        return None
    node = root
    while node.children:
        among = [child for child in node.children if child.num_open]
        node = max(among, key=lambda child: score(child, exploration, backup))
    return node


def depart(leaf: Node, visits: int) -> None:
    """Put a selected leaf in flight, with the virtual loss of so many visits."""
    leaf.is_open = False
    for node in leaf.upwards:
        node.num_open -= 1
        node.virtual += visits


def deliver(leaf: Node, visits: int, children: Sequence[Node]) -> None:
    """End a flight of so many visits: hang its children below and tell everyone above."""
    leaf.children += children
    num_open = sum(child.num_open for child in children)
    for node in leaf.upwards:
        node.virtual -= visits
        node.num_open += num_open
        node.visits += len(children)
        node.total += sum(child.value for child in children)
        node.best = max([node.best, *(child.value for child in children)])
