"""The published draft maker: MCTS with PUCT over rows of weights, and its cut to a token tree.

Source: liuxukun2000/Adaptix, the code of Liu et al. 2024 (arXiv 2407.12021), its faults included:
a rollout is scored by the weight of the token already in the pair, so almost always 1.0, and the
search follows priors and visits only.
Differs: ties go to the first made (hash order there), and the random numbers are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Final, TypeAlias

from engines.base import TokenIds

ITERATIONS: Final = 150
PATH_LIMIT: Final = 4  # the root included
KEPT_PATHS: Final = 24  # the root included, the most visited of all, which drafts nothing
C1: Final = 32.0
C2: Final = 8.0

Pair: TypeAlias = tuple[int, int]
Row: TypeAlias = Callable[[Pair], Mapping[int, float] | None]


class _Node:
    def __init__(self, key: Pair, prior: float, path: TokenIds) -> None:
        self.key = key
        self.prior = prior
        self.path = path
        self.visits = 0
        self.total = 0.0
        self.children: list[_Node] = []


def puct(
    value: float, prior: float, visits: int, parent_visits: int, c1: float = C1, c2: float = C2
) -> float:
    """The score of a child that was visited; `value` is its mean."""
    weight = c1 + math.log((parent_visits + c2 + 1.0) / c2)
    return value + weight * prior * math.sqrt(parent_visits) / (1 + visits)


def drafted_paths(root: Pair, row: Row, rng: Random) -> list[TokenIds]:
    """The paths worth drafting after `root`, without its tokens; most visited first."""
    top = _Node(root, 1.0, ())
    made: list[_Node] = []
    for _ in range(ITERATIONS):
        _iterate(top, row, rng, made)
    kept = sorted(made, key=lambda node: -node.visits)[: KEPT_PATHS - 1]
    paths: dict[TokenIds, None] = {}
    for node in kept:
        following = row(node.key)
        likeliest = max(following, key=following.__getitem__) if following else None
        paths[node.path if likeliest is None else (*node.path, likeliest)] = None
    return list(paths)


def _iterate(top: _Node, row: Row, rng: Random, made: list[_Node]) -> None:
    """Select, expand, roll out, score, back up."""
    trail = [top]
    while trail[-1].children and len(trail) < PATH_LIMIT:
        above = trail[-1]
        trail.append(max(above.children, key=lambda child: _score(child, above)))
    leaf = trail[-1]
    successors = row(leaf.key)
    if len(trail) < PATH_LIMIT and successors:
        leaf.children = [
            _Node((leaf.key[1], token), weight, (*leaf.path, token))
            for token, weight in successors.items()
        ]
        made += leaf.children
        trail.append(leaf.children[-1])
    keys = [node.key for node in trail]
    while len(keys) < PATH_LIMIT and (weights := row(keys[-1])):
        [token] = rng.choices(list(weights), list(weights.values()))
        keys.append((keys[-1][1], token))
    score = 1.0
    for key, following in pairwise(keys):
        score += (row(key) or {}).get(following[0], 0.0)
    for node in trail:
        node.visits += 1
        node.total += score


def _score(child: _Node, above: _Node) -> float:
    if child.visits == 0:
        return math.inf
    return puct(child.total / child.visits, child.prior, child.visits, above.visits)


def cut(paths: Sequence[TokenIds], choices: int) -> list[TokenIds]:
    """Leave paths out, those with most distinct tokens first, until `choices` suffice for all."""
    order = sorted(paths, key=lambda path: -len(set(path)))
    needed = sum(len(set(path)) for path in order)
    left_out = 0
    while needed > choices:
        needed -= len(set(order[left_out]))
        left_out += 1
    dropped = set(order[:left_out])
    return [path for path in paths if path not in dropped]
