"""Best-first growth of a token tree under any model of what follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush, heapreplace
from typing import TypeVar

from engines.drafters.base import ROOT, TokenTree

S = TypeVar("S")


def grow(
    start: S,
    successors: Callable[[S, float], Iterable[tuple[int, float]]],
    advance: Callable[[S, int], S],
    *,
    budget_nodes: int,
    min_prob: float = 0.0,
    max_depth: int = 64,
) -> TokenTree:
    """The `budget_nodes` likeliest nodes, likeliest first.

    No tree of this size has a larger sum of path probabilities, the expected number of accepted
    tokens under the model. Siblings go by falling probability then id, ties by insertion. A state
    is only made, and asked, where one of its successors may be among the best.

    Args:
        start: The model's state at the root.
        successors: Tokens and probabilities in (0, 1] after a state, no token twice. It is told
            below which probability a token does not matter there.
        advance: The state after one more token.
        budget_nodes: The most nodes.
        min_prob: Paths below this probability are left out.
        max_depth: The most tokens on one path.
    """
    tokens: list[int] = []
    parents: list[int] = []
    logps: list[float] = []
    if budget_nodes < 1:
        return TokenTree()
    heap: list[tuple[float, int, int, int, int, S]] = []
    best: list[float] = []  # of the paths seen so far, the budget's number of likeliest
    pushed = 0
    state, token, node, prob, depth = start, ROOT, ROOT, 1.0, 0
    while True:
        if depth < max_depth and (len(best) < budget_nodes or prob > best[0]):
            if node != ROOT:
                state = advance(state, token)
            least = best[0] if len(best) == budget_nodes and best[0] > min_prob else min_prob
            found = [
                (-prob * min(share, 1.0), following)
                for following, share in successors(state, least / prob)
                if share > 0.0 and prob * share >= least
            ]
            found.sort()
            for negative, following in found:
                if len(best) < budget_nodes:
                    heappush(best, -negative)
                elif -negative > best[0]:
                    heapreplace(best, -negative)
                else:
                    break
                heappush(heap, (negative, pushed, node, following, depth + 1, state))
                pushed += 1
        if not heap:
            break
        negative, _, parent, token, depth, state = heappop(heap)
        prob = -negative
        node = len(tokens)
        tokens.append(token)
        parents.append(parent)
        logps.append(math.log(prob) if prob > 0.0 else -math.inf)
        if len(tokens) == budget_nodes:
            break
    return TokenTree(tuple(tokens), tuple(parents), tuple(logps))
