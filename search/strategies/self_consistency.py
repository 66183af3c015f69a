"""Self-consistency: draw whole answers and let them vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.branch import Branch
from search.search import Search
from search.select import Aggregate
from search.voting import groups_of, ranked_by


class SelfConsistencyParams(Params):
    """Parameters of `self_consistency`."""

    width: int = Field(default=8, ge=1, le=1024, description="Answers to draw.")
    vote: Literal["majority", "weighted"] = Field(
        default="majority",
        description="Every answer counts once, or as much as the reward model values it.",
    )
    aggregate: Aggregate | None = Field(
        default=None,
        description="Weighted votes only: how the values of an answer's steps become one.",
    )


@dataclass(frozen=True)
class SelfConsistency:
    """Draw `width` whole answers, group those that mean the same, return the heaviest group's.

    Source: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", arXiv 2203.11171.
    Differs: an answer that was cut, or states no final answer, counts only when there is no other.
    """

    params: SelfConsistencyParams
    name: ClassVar[str] = "self_consistency"
    Params: ClassVar[type[SelfConsistencyParams]] = SelfConsistencyParams
    requires: ClassVar[frozenset[Capability]] = frozenset()

    @property
    def needs_judge(self) -> bool:
        """Only weighted votes are judged."""
        return self.params.vote == "weighted"

    async def run(self, search: Search) -> Outcome:
        """Draw, vote; a candidate's score is its group's share of the votes."""
        fresh = max(0, self.params.width - len(search.given))
        samples = [*search.given, *await search.expand(search.root, fresh, last=True)]
        voters = [one for one in samples if one.is_finished] or samples
        if self.needs_judge:
            await search.score(voters)
            voters = search.usable(voters)
        weights = [self._weight(search, one) for one in voters]
        groups = await groups_of(voters, weights)
        return search.outcome(ranked_by(groups, voters, weights))

    def _weight(self, search: Search, branch: Branch) -> float:
        if not self.needs_judge:
            return 1.0
        return search.worth(branch, self.params.aggregate)
