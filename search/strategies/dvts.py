"""Diverse verifier tree search: many narrow beams that know nothing of each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.branch import Branch
from search.levels import Levels
from search.ranking import by_vote, by_worth, worth
from search.search import Search
from search.select import Aggregate, spread


class DvtsParams(Params):
    """Parameters of `dvts`."""

    width: int = Field(
        default=16, ge=1, le=1024, description="Steps drawn at every level by all subtrees."
    )
    subtrees: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Independent subtrees, at most `width`; the square root of `width`, rounded "
        "up, by default.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of a branch's steps become one."
    )
    choose: Literal["vote", "best"] = Field(
        default="vote",
        description="The answer: by a vote weighted with the values, or of the highest value.",
    )
    max_depth: int = Field(default=25, ge=1, le=1000, description="Levels.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )

    def sizes(self, width: int) -> list[int]:
        """Steps that each subtree draws at every level when all together draw `width`."""
        wanted = self.subtrees or math.ceil(math.sqrt(self.width))
        return spread(width, min(wanted, width)) if width else []


@dataclass(frozen=True)
class Dvts:
    """Search independent subtrees side by side; each keeps only its best step at every level.

    Source: Beeching et al., "Scaling test-time compute with open models", Hugging Face, 2024, and
    the `dvts` baseline of ETS (arXiv 2502.13575, reference code): ceil(√N) subtrees, the best
    child of each is kept.
    Differs: `width` is shared out exactly (the originals drop the remainder); every child that
    finished is a candidate, also where another one was better; a subtree ends when its best child
    has finished, and its width is not given to others, as in the first source.
    """

    params: DvtsParams
    name: ClassVar[str] = "dvts"
    Params: ClassVar[type[DvtsParams]] = DvtsParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """In every subtree: draw, judge, keep the best; all subtrees together, level by level."""
        levels = await Levels.begin(search, self.params.max_step_tokens)
        sizes = self.params.sizes(max(0, self.params.width - len(levels.ended)))
        tips = [(search.root, size) for size in sizes]  # one for each subtree that goes on
        for _ in range(self.params.max_depth):
            children = await levels.grow(tips)
            if not children:
                break
            broods = self._broods(search, tips, children)
            best = [self._best(search, brood) for brood in broods]
            tips = [
                (one, size)
                for one, (_, size) in zip(best, tips, strict=True)
                if one is not None and one.finish is None
            ]
            kept = {one for one, _ in tips}
            lost = [one for one in levels.still_open(children) if one not in kept]
            search.prune(lost, "not the best of its subtree")
        rest = [one for one, _ in tips]
        if self.params.choose == "best":
            return by_worth(search, levels.ended, rest, self.params.aggregate)
        return await by_vote(search, levels.ended, rest, self.params.aggregate)

    def _broods(
        self, search: Search, tips: list[tuple[Branch, int]], children: list[Branch]
    ) -> list[list[Branch]]:
        """The next steps by subtree."""
        if tips and tips[0][0] is search.root:  # dealt to the subtrees in order of submission
            ends = [sum(size for _, size in tips[: at + 1]) for at in range(len(tips))]
            starts = [0, *ends[:-1]]
            return [children[start:end] for start, end in zip(starts, ends, strict=True)]
        return [[one for one in children if one.parent is tip] for tip, _ in tips]

    def _best(self, search: Search, brood: list[Branch]) -> Branch | None:
        values = {one: worth(search, one, self.params.aggregate) for one in brood}
        judged = [one for one in brood if values[one] is not None]
        return max(judged, key=lambda one: values[one] or 0.0, default=None)
