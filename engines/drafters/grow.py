"""Best-first growth of a token tree under any model of what follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import TypeVar

from engines.drafters.base import ROOT, TokenTree

S = TypeVar("S")


def grow(
    start: S,
    successors: Callable[[S], Iterable[tuple[int, float]]],
    advance: Callable[[S, int], S],
    *,
    budget_nodes: int,
    min_prob: float = 0.0,
    max_depth: int = 64,
) -> TokenTree:
    """The `budget_nodes` likeliest nodes, likeliest first.

    No tree of this size has a larger sum of path probabilities, the expected number of accepted
    tokens under the model. Siblings go by falling probability then id, ties by insertion.

    Args:
        start: The model's state at the root.
        successors: Tokens and probabilities in (0, 1] after a state, no token twice.
        advance: The state after one more token.
        budget_nodes: The most nodes.
        min_prob: Paths below this probability are left out.
        max_depth: The most tokens on one path.
    """
    tokens: list[int] = []
    parents: list[int] = []
    logps: list[float] = []
    heap: list[tuple[float, int, int, int, int, S]] = []
    pushed = 0
    state, node, prob, depth = start, ROOT, 1.0, 0
    while len(tokens) < budget_nodes:
        if depth < max_depth:
            for token, share in sorted(successors(state), key=lambda item: (-item[1], item[0])):
                if share <= 0.0 or prob * share < min_prob:
                    break
                heappush(heap, (-prob * min(share, 1.0), pushed, node, token, depth + 1, state))
                pushed += 1
        if not heap:
            break
        negative, _, parent, token, depth, above = heappop(heap)
        prob = -negative
        node = len(tokens)
        tokens.append(token)
        parents.append(parent)
        logps.append(math.log(prob) if prob > 0.0 else -math.inf)
        state = advance(above, token)
    return TokenTree(tuple(tokens), tuple(parents), tuple(logps))
