"""How much cache a level-synchronous search claims, decode step by decode step.

A pure function of the finished tree, so that it is the same on every machine, however the engine
batched. It holds for strategies that draw all children of a level together and give a branch's
claim back when the branch has been pruned, has finished, or has nothing left to grow: `rebase`,
`ets`, `beam`, `dvts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.base import TokenIds
from search.branch import Branch


@dataclass(frozen=True)
class KvTrace:
    """Claimed tokens over the decode steps of one search, the prompt counted once.

    Attributes:
        mean: Over the steps.
        peak: The most of any step.
        steps: Decode steps, those of all levels together.
    """

    mean: float
    peak: int
    steps: int


def kv_trace(branches: Sequence[Branch], prompt_tokens: int, *, merged: bool = False) -> KvTrace:
    """What the branches of one search claimed while they were drawn.

    In decode step t of a level every child that is still being drawn claims its parent's path and
    its own t tokens; one that reached a step's end keeps them; one that finished claims nothing
    any more. Tokens that several paths share count once.

    Args:
        branches: All of the tree, with token ids.
        prompt_tokens: Of the question.
        merged: Whether branches that drew the same tokens after the same tokens count once, too,
            as soon as the tokens are drawn: in a cache that knows prefixes by their content they
            are one.

    Raises:
        ValueError: Nothing was drawn.
    """
    levels: dict[int, list[Branch]] = {}
    for one in branches:
        if one.parent is not None and one.step.num_tokens:
            levels.setdefault(one.depth, []).append(one)
    if not levels:
        raise ValueError("the tree has no branch with tokens")
    keys = _Keys(merged)
    parts = [_of_level(levels[depth], keys) for depth in sorted(levels)]
    claimed = np.concatenate(parts) + prompt_tokens
    return KvTrace(float(claimed.mean()), int(claimed.max()), len(claimed))


def _of_level(children: Sequence[Branch], keys: _Keys) -> npt.NDArray[np.int64]:
    """Claimed tokens at every decode step of one level, without the prompt."""
    num_steps = max(one.step.num_tokens for one in children)
    claimed = np.zeros(num_steps, np.int64)
    held: dict[int, tuple[int, int, int]] = {}  # by path: from step, to step, tokens

    def hold(node: Branch, start: int, end: int) -> None:
        old = held.get(keys.of(node), (start, end, 0))
        held[keys.of(node)] = (min(start, old[0]), max(end, old[1]), node.step.num_tokens)

    for child in children:
        size = child.step.num_tokens
        claimed[:size] += np.arange(1, size + 1)
        if child.finish is None:
            hold(child, size, num_steps)
        assert child.parent is not None
        for node in child.parent.lineage:
            hold(node, 0, size if child.finish is not None else num_steps)
    for start, end, tokens in held.values():
        claimed[start:end] += tokens
    return claimed


class _Keys:
    """A number for every branch, or for every path of tokens, which several may share."""

    def __init__(self, merged: bool) -> None:
        self._merged = merged
        self._numbers: dict[tuple[int, TokenIds], int] = {}
        self._known: dict[Branch, int] = {}

    def of(self, branch: Branch) -> int:
        if not self._merged or branch.parent is None:
            return branch.id
        if branch not in self._known:
            path = self.of(branch.parent), branch.step.token_ids
            self._known[branch] = self._numbers.setdefault(path, len(self._numbers) + 1)
        return self._known[branch]
