"""Generative selection: the model reads its own candidates and picks one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from engines.base import Capability, Sampling
from engines.errors import ContextLengthExceeded
from search.base import Outcome, Params
from search.branch import Branch
from search.errors import BudgetExhausted
from search.search import Search
from search.select import INVALID, Aggregate
from search.selection import named_candidate, question_overhead, selection_question
from search.voting import groups_of, ranked_by


class GenSelectParams(Params):
    """Parameters of `gen_select`."""

    width: int = Field(default=8, ge=1, le=1024, description="Answers to draw.")
    shown: int = Field(
        default=16,
        ge=2,
        le=64,
        description="Most candidates to show the model; those of the largest groups first, and no "
        "more than fit its context.",
    )
    max_reply_tokens: int = Field(
        default=512, ge=1, le=65536, description="Longest reply to the question which is best."
    )
    aggregate: Aggregate | None = Field(
        default=None,
        description="Weight of a vote where the model picks none and there is a judge: how the "
        "values of an answer's steps become one.",
    )


@dataclass(frozen=True)
class GenSelect:
    """Draw `width` answers, show them to the model and return the one it picks.

    A model whose reply names no candidate cannot do this: then the answers vote, weighted by the
    judge where there is one, and the reply's `resolved` says so.

    Source: Moshkov et al., "AIMO-2 Winning Solution: Building State-of-the-Art Mathematical
    Reasoning Models with OpenMathReasoning dataset", arXiv 2504.16891, §4 (GenSelect).
    Differs: whole answers are shown instead of summaries; one question instead of many in random
    orders; nothing is asked where all answers agree.
    """

    params: GenSelectParams
    name: ClassVar[str] = "gen_select"
    Params: ClassVar[type[GenSelectParams]] = GenSelectParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Draw, ask, and put what was picked first; a score is the share of the votes."""
        fresh = max(0, self.params.width - len(search.given))
        samples = [*search.given, *await search.expand(search.root, fresh, last=True)]
        voters = [one for one in samples if one.is_finished] or samples
        ones = [1.0] * len(voters)
        groups = await groups_of(voters, ones)
        ranked = ranked_by(groups, voters, ones)
        shown = self._shown(search, [one.branch for one in ranked])
        if len(groups) < 2 and not (groups and groups[0].answer == INVALID and len(shown) > 1):
            return search.outcome(ranked)
        picked, why = await self._picked(search, shown)
        if picked is None:
            return await self._by_vote(search, voters, why)
        search.note("the model's pick")
        return search.outcome(sorted(ranked, key=lambda one: one.branch is not picked))

    async def _picked(self, search: Search, shown: list[Branch]) -> tuple[Branch | None, str]:
        """The candidate that the model names, or why there is none."""
        if len(shown) < 2:
            return None, "the candidates do not fit the context"
        question = selection_question(search.messages, [one.whole_text for one in shown])
        try:
            reply = await search.ask(question, self._sampling(search))
        except BudgetExhausted:
            return None, "nothing was left to ask with"
        except ContextLengthExceeded:
            return None, "the candidates do not fit the context"
        at = named_candidate(reply.text, len(shown))
        return (None, "the model named no candidate") if at is None else (shown[at], "")

    async def _by_vote(self, search: Search, voters: list[Branch], why: str) -> Outcome:
        """What the answers say by themselves, weighted where somebody judges them."""
        weights = [1.0] * len(voters)
        kind = "majority"
        if search.judge is not None:
            await search.score(voters)
            usable = search.usable(voters)
            if usable:
                voters, kind = usable, "weighted"
                weights = [self._weight(search, one) for one in voters]
        search.note(f"{kind} vote, {why}")
        return search.outcome(ranked_by(await groups_of(voters, weights), voters, weights))

    def _weight(self, search: Search, branch: Branch) -> float:
        return search.worth(branch, self.params.aggregate)

    def _shown(self, search: Search, best_first: list[Branch]) -> list[Branch]:
        """As many of the candidates as fit, in the order they were drawn; no text twice."""
        by_text: dict[str, Branch] = {}
        for one in best_first:
            by_text.setdefault(one.text, one)
        different = [one for text, one in by_text.items() if text.strip()][: self.params.shown]
        while different and not self._fits(search, different):
            different.pop()
        return sorted(different, key=lambda one: one.id)

    def _fits(self, search: Search, shown: list[Branch]) -> bool:
        """Whether the question fits the context, by the tokens that the candidates took."""
        per_character = max(one.num_tokens / len(one.text) for one in shown)
        beside = question_overhead(len(shown)) + len(search.root.prefill) * len(shown)
        overhead = math.ceil(per_character * beside)
        size = search.tree.prompt_tokens + overhead + sum(one.num_tokens for one in shown)
        return size + self.params.max_reply_tokens <= search.engine.context_tokens

    def _sampling(self, search: Search) -> Sampling:
        """How to draw the reply: the request's manner, without what only its answer must obey."""
        return replace(
            search.sampling,
            max_tokens=self.params.max_reply_tokens,
            min_tokens=0,
            stop=(),
            constraint=None,
            schedule=None,
            logprobs=None,
            logps=False,
            logit_bias={},
        )
