"""A strategy of one's own: draw answers one after another until one is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.search import Search


class FirstGoodParams(Params):
    """Parameters of `first_good`."""

    width: int = Field(default=8, ge=1, le=1024, description="Most answers to draw.")
    threshold: float = Field(default=0.9, ge=0, le=1, description="The value that is good enough.")


@dataclass(frozen=True)
class FirstGood:
    """Draw answers one after another until one reaches `threshold`; return the best."""

    params: FirstGoodParams
    name: ClassVar[str] = "first_good"
    Params: ClassVar[type[FirstGoodParams]] = FirstGoodParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Draw, judge, stop when one is good; otherwise the best of all."""
        drawn: list[Branch] = []
        for count in range(1, self.params.width + 1):
            fresh = await search.expand(search.root, 1, last=count == self.params.width)
            (value,) = await search.score(fresh) or [0.0]
            drawn += search.usable(fresh)
            if not fresh or value >= self.params.threshold:
                break
        return search.outcome([Ranked(one, search.value(one)) for one in search.best(drawn)])
