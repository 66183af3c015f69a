"""Lossless acceptance: one draw per visited node, from the target's own final distribution.

The emitted tokens are exactly those that plain decoding would emit with the same draws, whatever
was drafted. That needs three things of the caller: a node's distribution is the final one (after
temperature, truncation, penalties and, where there is one, grammar, all read on that node's own
path); the draws of two depths are independent; the tree was made before any of them. Draws at
different nodes of the same depth may share one uniform number, since only one of them is ever
looked at: an engine may draw for every node at once and call `walk` afterwards. The embedded engine
does, and refuses grammars; vLLM verifies chains by its own code, grammars included.

Source: the corrected algorithm for Liu et al. 2024 (arXiv 2407.12021); speculative sampling with
a one-hot draft. `published_walk` is the published acceptance rule, which is not lossless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engines.base import TokenIds
from engines.drafters.base import ROOT, TokenTree

Draw: TypeAlias = Callable[[int], int]
"""The token drawn after a node (ROOT included) from the target's final distribution there."""


@dataclass(frozen=True)
class Walk:
    """What a verification accepted.

    Attributes:
        nodes: Accepted nodes from the root on: the cache slots to keep.
        emitted: Their tokens and the token drawn after the last of them, which is the next root.
    """

    nodes: tuple[int, ...]
    emitted: TokenIds


def walk(tree: TokenTree, draw: Draw) -> Walk:
    """Follow the draws through the tree; calls `draw` once for each visited node, in order."""
    node = ROOT
    nodes: list[int] = []
    emitted: list[int] = []
    while True:
        token = draw(node)
        emitted.append(token)
        following = tree.children.get((node, token))
        if following is None:
            return Walk(tuple(nodes), tuple(emitted))
        nodes.append(following)
        node = following


def greedy_walk(tree: TokenTree, argmax: Sequence[int]) -> Walk:
    """`walk` where the root (index 0) and each node (index i + 1) can only say its argmax."""
    return walk(tree, lambda node: argmax[node + 1])


def published_walk(rows: Sequence[Sequence[int]], tree: TokenTree, draw: Draw) -> Walk:
    """The published rule with sampling, kept as a yardstick: NOT lossless.

    Every root-to-leaf row (node numbers) draws for itself at each of its positions and accepts
    while draw and draft agree; the longest row wins, the first of equals; the token that caused
    the rejection is thrown away and the next one drawn afresh. Calls `draw` several times per node.
    """
    best: Sequence[int] = ()
    for row in rows:
        above, count = ROOT, 0
        for node in row:
            if draw(above) != tree.tokens[node]:
                break
            above, count = node, count + 1
        if count > len(best):
            best = row[:count]
    last = best[-1] if best else ROOT
    return Walk(tuple(best), (*(tree.tokens[node] for node in best), draw(last)))
