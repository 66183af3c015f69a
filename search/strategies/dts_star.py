"""Diffusion tree search: the best text of a tree of denoising rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability, Engine, Sampling
from search.base import Outcome
from search.diffusion_tree import Pick, by_uct, by_value, descend
from search.rollouts import Rollouts
from search.search import Search
from search.tree_search import (
    TreeSearchParams,
    Unbounded,
    beside,
    check_tree,
    grown,
    is_reached,
)


class DtsStarParams(TreeSearchParams):
    """Parameters of `dts_star`."""

    lambda_: Unbounded | None = Field(
        default=None,
        alias="lambda",
        description="Sharpness of the backup: inf, the default, takes the best text below; less "
        "trusts a branch of many good texts more than one lucky text.",
    )
    c_uct: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Weight of the exploration bonus, in standard deviations of the rewards.",
    )
    choose: Literal["tree", "best"] = Field(
        default="tree",
        description="The answer: down by value to a text, or the best text; with lambda inf the "
        "same.",
    )


@dataclass(frozen=True)
class DtsStar:
    """Denoise down the most promising branches; the best text that was found.

    Source: Jain, Sareen, Pedramfar, Ravanbakhsh, "Diffusion Tree Sampling", arXiv 2506.20701,
    Algorithm 1 (DTS*) and Algorithm 2; largest-value backup as their text runs have it.
    Differs: the exploration weight is scaled by the spread of the rewards, of which the paper says
    nothing; several rollouts at once under virtual visits; a widening for small budgets; equal
    states are one node unless `merge` is off; a rollout whose reward fails leaves no trace.
    """

    params: DtsStarParams
    name: ClassVar[str] = "dts_star"
    Params: ClassVar[type[DtsStarParams]] = DtsStarParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.DENOISE})
    needs_judge: ClassVar[bool] = True
    keeps_trees: ClassVar[bool] = True

    def check(self, engine: Engine, how: Sampling) -> None:
        """Refuse what could not be searched; see `check_tree`."""
        check_tree(self.params, self.name, engine, how)

    async def run(self, search: Search) -> Outcome:
        """Grow; then down by value to a text, and the others by reward behind it."""
        params = self.params
        given = await beside(search, params.aggregate)
        sharpness = math.inf if params.lambda_ is None else params.lambda_
        tree = await grown(search, params, self.name, sharpness, self._pick)
        first = descend(tree.root, by_value)
        rest = [*given, *tree.ranked(tree.ends())]
        rest.sort(key=lambda one: -(one.score or 0.0))
        is_better = not given or first is None or (given[0].score or 0.0) < first.value
        is_tree = params.choose == "tree" and is_better and not is_reached(params.target, rest)
        lead = tree.ranked([first]) if first is not None and is_tree else []
        return search.outcome([*lead, *rest])

    def _pick(self, tree: Rollouts) -> Pick:
        return by_uct(lambda: self.params.c_uct * tree.rewards.spread)
