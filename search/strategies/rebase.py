"""REBASE: a tree of steps whose width goes where the rewards are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.branch import Branch
from search.levels import Levels
from search.ranking import by_vote
from search.search import Search
from search.select import Aggregate, rebase_counts
from search.tree import Resampled


class RebaseParams(Params):
    """Parameters of `rebase`."""

    width: int = Field(
        default=16, ge=1, le=1024, description="Continuations drawn at the first level."
    )
    softmax_temperature: float = Field(
        default=0.2, gt=0, le=100, description="Of the rewards; smaller is greedier."
    )
    aggregate: Aggregate | None = Field(
        default=None,
        description="Weight of a vote: how the values of an answer's steps become one.",
    )
    max_depth: int = Field(default=25, ge=1, le=1000, description="Levels.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )


@dataclass(frozen=True)
class Rebase:
    """Give every open branch continuations in proportion to the softmax of its reward.

    Source: Wu et al., "Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference
    for Problem-Solving with Language Models", arXiv 2408.00724, §3.1.3, and its reference code.
    Differs: the counts are those of the code, which sum to the width (the paper rounds each);
    ties go to creation order; the answer phrase is searched in the answer only, in completed
    lines; answers that state nothing never win the vote, as a group they may in the code. The
    temperature is the code's 0.2 (the paper says 0.1).
    """

    params: RebaseParams
    name: ClassVar[str] = "rebase"
    Params: ClassVar[type[RebaseParams]] = RebaseParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True
    pruned_because: ClassVar[str] = "its share of the width is nothing"

    async def run(self, search: Search) -> Outcome:
        """Allocate, expand, judge, level by level; then vote."""
        params = self.params
        levels = await Levels.begin(search, params.max_step_tokens)
        frontier, width = [search.root], params.width - len(levels.ended)
        for _ in range(params.max_depth):
            counts = await self._allocate(search, frontier, max(0, width))
            children = await levels.grow(zip(frontier, counts, strict=True))
            if not children:
                frontier = [leaf for leaf, n in zip(frontier, counts, strict=True) if n]
                break
            frontier = levels.still_open(children)
            width = params.width - len(levels.ended)
            if not frontier or width <= 0:
                break
        return await by_vote(search, levels.ended, frontier, params.aggregate)

    async def shares(
        self, search: Search, leaves: Sequence[Branch], rewards: Sequence[float], width: int
    ) -> list[int]:
        """How many of `width` continuations each leaf gets; 0 is the end of it."""
        return rebase_counts(rewards, width, self.params.softmax_temperature)

    async def _allocate(self, search: Search, leaves: list[Branch], width: int) -> list[int]:
        rewards = [1.0 if leaf is search.root else search.value(leaf) for leaf in leaves]
        counts = await self.shares(search, leaves, rewards, width)
        for leaf, count in zip(leaves, counts, strict=True):
            if count and leaf is not search.root:
                search.tree.record(Resampled(leaf.id, count))
        lost = [leaf for leaf, count in zip(leaves, counts, strict=True) if not count]
        search.prune(lost, self.pruned_because)
        return counts
