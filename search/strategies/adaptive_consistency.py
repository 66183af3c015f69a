"""Adaptive consistency: draw answers until it is clear which one the vote will choose."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.branch import Branch
from search.posterior import StopRule, fewest_to_decide, is_certain, is_decided
from search.search import Search
from search.voting import groups_of, ranked_by, tally


class AdaptiveConsistencyParams(Params):
    """Parameters of `adaptive_consistency`."""

    width: int = Field(default=16, ge=1, le=1024, description="Most answers to draw.")
    threshold: float = Field(
        default=0.95,
        gt=0.5,
        le=1,
        description="Stop when the leading answer is the likeliest one with this probability; with "
        "1 only when no further vote could change the winner.",
    )
    stop_rule: StopRule = Field(
        default="beta",
        description="The probability's posterior: beta, of the two leading answers, or dirichlet, "
        "of all answers seen, which stops a little later.",
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Answers drawn at once, at least; never fewer than must be drawn before the "
        "vote may stop. More are quicker, and what turns out not to be needed is cancelled.",
    )


@dataclass(frozen=True)
class AdaptiveConsistency:
    """Draw answers until the posterior says that the majority will not change; let them vote.

    Source: Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency for Efficient
    Reasoning and Coding with LLMs", arXiv 2305.11860, with the Beta or the Dirichlet criterion.
    Differs: answers are drawn several at once, but only as many as the paper would draw one by one
    before it could stop, so that the tokens are the same; answers count in the order of
    submission, so that short ones, which finish first, have no advantage; it also stops when the
    votes still missing could not change the winner, whichever those are; an answer that was cut, or
    states no final answer, has no vote.
    """

    params: AdaptiveConsistencyParams
    name: ClassVar[str] = "adaptive_consistency"
    Params: ClassVar[type[AdaptiveConsistencyParams]] = AdaptiveConsistencyParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Draw as many as might decide the vote, until they do; a score is a share of the votes."""
        samples = list(search.given)
        while (left := self.params.width - len(samples)) > 0:
            counts = await self._counts(samples)
            if self._is_decided(counts, left):
                break
            fewest = fewest_to_decide(counts, left, self.params.threshold, self.params.stop_rule)
            wave = min(left, max(fewest, self.params.concurrency))
            drawn = await self._draw(search, samples, wave)
            samples += drawn
            if len(drawn) < wave:  # decided in the middle of it, or the budget is used up
                break
        voters = [one for one in samples if one.is_finished] or samples
        groups = await groups_of(voters, [1.0] * len(voters))
        return search.outcome(ranked_by(groups, voters, [1.0] * len(voters)))

    async def _draw(self, search: Search, before: list[Branch], wave: int) -> list[Branch]:
        """`wave` more answers, or those of them that decide the vote; the rest is cancelled."""
        in_order: list[Branch] = []
        waiting: dict[int, Branch] = {}
        start, left = search.tree.num_children(search.root), self.params.width - len(before)
        children = search.expand_iter(search.root, wave, last=wave == left)
        async with aclosing(children):
            async for child in children:
                waiting[child.path[-1] - start] = child
                while len(in_order) in waiting:
                    in_order.append(waiting.pop(len(in_order)))
                    counts = await self._counts([*before, *in_order])
                    if self._is_decided(counts, left - len(in_order)):
                        search.prune(waiting.values(), "the vote was decided without it")
                        return in_order
                early = [*in_order, *(waiting[at] for at in sorted(waiting))]
                if waiting and await self._is_settled(before, in_order, early, left):
                    return early
        return [*in_order, *(waiting[at] for at in sorted(waiting))]

    async def _is_settled(
        self, before: list[Branch], in_order: list[Branch], early: list[Branch], left: int
    ) -> bool:
        """Whether nobody need wait for the answers missing between those that came early.

        They can change neither the winner nor which of its branches is shown, the first one.
        """
        seen = [*before, *early]
        voters = [one for one in seen if one.is_finished]
        groups = await groups_of(voters, [1.0] * len(voters))
        if not is_certain(tally(groups), left - len(early)):
            return False
        return voters[groups[0].members[0]] in (*before, *in_order)

    async def _counts(self, samples: list[Branch]) -> list[float]:
        voters = [one for one in samples if one.is_finished]
        return tally(await groups_of(voters, [1.0] * len(voters)))

    def _is_decided(self, counts: list[float], left: int) -> bool:
        return is_decided(counts, left, self.params.threshold, self.params.stop_rule)
