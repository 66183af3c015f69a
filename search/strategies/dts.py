"""Diffusion tree sampling: texts drawn by the model's probability and their reward together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability, Engine, Sampling
from search.base import Outcome, Ranked
from search.diffusion_tree import by_share, descend
from search.search import Search
from search.tree_search import (
    TreeSearchParams,
    Unbounded,
    beside,
    check_tree,
    grown,
    is_reached,
)

_DRAWS = 16


class DtsParams(TreeSearchParams):
    """Parameters of `dts`."""

    lambda_: Unbounded = Field(
        default=10.0,
        alias="lambda",
        description="Texts are drawn with the model's probability times exp(lambda · reward).",
    )
    choose: Literal["sample", "best"] = Field(
        default="sample",
        description="The answer: drawn from the tree, or the best text in it.",
    )


@dataclass(frozen=True)
class Dts:
    """Grow a tree of denoising rollouts, draw the answer from it; more budget, a better sampler.

    Source: Jain, Sareen, Pedramfar, Ravanbakhsh, "Diffusion Tree Sampling", arXiv 2506.20701,
    Algorithms 1 (DTS) and 2.
    Differs: lambda is 10 where the paper samples with 1, because rewards here lie in 0..1 as a
    rule; several rollouts at once under virtual visits; a widening for small budgets; equal states
    are one node unless `merge` is off; a rollout whose reward fails leaves no trace.
    """

    params: DtsParams
    name: ClassVar[str] = "dts"
    Params: ClassVar[type[DtsParams]] = DtsParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.DENOISE})
    needs_judge: ClassVar[bool] = True
    keeps_trees: ClassVar[bool] = True

    def check(self, engine: Engine, how: Sampling) -> None:
        """Refuse what could not be searched; see `check_tree`."""
        check_tree(self.params, self.name, engine, how)

    async def run(self, search: Search) -> Outcome:
        """Grow; then draw texts, which cost nothing; those not drawn follow by reward.

        A text of the target's reward goes before what was drawn.
        """
        params, rng = self.params, search.rng()
        given = await beside(search, params.aggregate)
        pick = by_share(params.lambda_, rng.random)
        tree = await grown(search, params, self.name, params.lambda_, lambda _: pick)
        drawn: dict[object, Ranked] = {}
        if params.choose == "sample":
            for _ in range(_DRAWS * search.answers):
                end = descend(tree.root, pick)
                if end is not None:
                    drawn.setdefault(end, tree.ranked([end])[0])
        rest = [*given, *tree.ranked(tree.ends())]
        rest.sort(key=lambda one: -(one.score or 0.0))
        lead = [] if is_reached(params.target, rest) else drawn.values()
        return search.outcome([*lead, *rest])
