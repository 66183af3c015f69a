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


def kv_trace(branches: Sequence[Branch], prompt_tokens: int) -> KvTrace:
    """What the branches of one search claimed while they were drawn.

    In decode step t of a level every child that is still being drawn claims its parent's path and
    its own t tokens; one that reached a step's end keeps them; one that finished claims nothing
    any more. Tokens that several paths share count once.

    Args:
        branches: All of the tree.
        prompt_tokens: Of the question.

    Raises:
        ValueError: Nothing was drawn.
    """
    levels: dict[int, list[Branch]] = {}
    for one in branches:
        if one.parent is not None and one.step.num_tokens:
            levels.setdefault(one.depth, []).append(one)
    if not levels:
        raise ValueError("the tree has no branch with tokens")
    claimed = np.concatenate([_of_level(levels[depth]) for depth in sorted(levels)]) + prompt_tokens
    return KvTrace(float(claimed.mean()), int(claimed.max()), len(claimed))


def _of_level(children: Sequence[Branch]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Claimed tokens at every decode step of one level, without the prompt."""
    num_steps = max(one.step.num_tokens for one in children)
    claimed = np.zeros(num_steps, np.int64)
    until: dict[Branch, int] = {}  # by node above: the steps for which somebody needs it
    for child in children:
        size = child.step.num_tokens
        held = size if child.finish is not None else num_steps
        claimed[:held] += np.minimum(np.arange(1, held + 1), size)
        assert child.parent is not None
        for node in child.parent.lineage:
            until[node] = max(until.get(node, 0), held)
    for node, held in until.items():
        claimed[:held] += node.step.num_tokens
    return claimed
