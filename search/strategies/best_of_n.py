"""Best of n: draw whole answers, judge each, return the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.ranking import by_worth
from search.search import Search
from search.select import Aggregate


class BestOfNParams(Params):
    """Parameters of `best_of_n`."""

    width: int = Field(default=8, ge=1, le=1024, description="Answers to draw and judge.")
    aggregate: Aggregate | None = Field(
        default=None,
        description="How the values of an answer's steps become one, with a judge that values "
        "every step: the last, the smallest, their product or their mean; or one value of the "
        "whole (model).",
    )


@dataclass(frozen=True)
class BestOfN:
    """Draw `width` whole answers and return the one that the reward model values most."""

    params: BestOfNParams
    name: ClassVar[str] = "best_of_n"
    Params: ClassVar[type[BestOfNParams]] = BestOfNParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Draw, judge, take the best; ties go to the first drawn."""
        fresh = max(0, self.params.width - len(search.given))
        samples = [*search.given, *await search.expand(search.root, fresh, last=True)]
        await search.score(samples)
        # An answer that was cut competes only when none ended by itself.
        return by_worth(search, search.usable(samples), (), self.params.aggregate)
