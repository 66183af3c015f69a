"""Step-level beam search with a process reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.levels import Levels
from search.ranking import by_worth
from search.search import Search
from search.select import Aggregate, spread


class BeamParams(Params):
    """Parameters of `beam`."""

    width: int = Field(default=16, ge=1, le=1024, description="Steps drawn at every level.")
    keep: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Fixed width: so many branches are kept at every level. Left out, √N width: "
        "the square root of `width`, rounded up.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of a branch's steps become one."
    )
    max_depth: int = Field(default=25, ge=1, le=1000, description="Levels.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )

    @property
    def num_kept(self) -> int:
        """Branches kept at every level, by the rule that was asked for."""
        return self.keep or math.ceil(math.sqrt(self.width))


@dataclass(frozen=True)
class Beam:
    """At every level keep the best branches and draw `width` next steps from them.

    Source: the `beam_search` baseline of ETS (arXiv 2502.13575, reference code): ceil(√N) branches
    are kept, or a fixed number (`keep`, its `fixedwidth`); finished ones use up width.
    Differs: the remaining width is spread evenly and exactly, best branches first, where the
    original draws ceil(B / keep) from each and so exceeds it; the best finished branch is
    returned.
    """

    params: BeamParams
    name: ClassVar[str] = "beam"
    Params: ClassVar[type[BeamParams]] = BeamParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Expand, judge, keep the best; the answer is the best that ended by itself."""
        params = self.params
        levels = await Levels.begin(search, params.max_step_tokens)
        beam, width = [search.root], params.width - len(levels.ended)
        for _ in range(params.max_depth):
            children = await levels.grow(zip(beam, spread(max(0, width), len(beam)), strict=True))
            if not children:
                break
            width = params.width - len(levels.ended)
            ranked = sorted(
                levels.still_open(children),
                key=lambda one: -search.worth(one, params.aggregate),
            )
            beam = ranked[: min(params.num_kept, max(0, width))]
            search.prune(ranked[len(beam) :], "not among the best")
            if not beam:
                break
        return by_worth(search, levels.ended, beam, params.aggregate)
