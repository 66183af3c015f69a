"""Auto: a cheap first look decides what the question is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from scipy.special import expit

from engines.base import Capability, Sampling
from engines.errors import UnsupportedByEngine
from reward_models.base import RewardKind
from search.base import Outcome, Params
from search.branch import Branch
from search.budget import Limited, Limits
from search.first_look import FirstLook, Stated, relative_confidences
from search.search import Search
from search.select import Aggregate, Group
from search.steps import split_steps
from search.voting import groups_of, ranked_by, tally


class AutoParams(Params):
    """Parameters of `auto`."""

    width: int = Field(
        default=12, ge=1, le=1024, description="Most answers, or the width of the tree."
    )
    look: int = Field(default=2, ge=1, le=1024, description="Samples of the first look.")
    threshold: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="Stop where the leading answer is as sure as this.",
    )
    hard_below: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Grow a tree where it is less sure than this; between the two, draw more "
        "samples.",
    )
    tree: Literal["ets", "rebase", "beam", "none"] = Field(
        default="beam",
        description="The tree for hard questions; it needs a judge of steps and an engine that "
        "continues text. Without them more samples are drawn.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of an answer's steps become one."
    )


@dataclass(frozen=True)
class Auto:
    """Draw a few samples; stop if they agree, else draw more, or grow a tree.

    The samples vote, weighted by the model's confidence. The posterior of the votes, and the
    judge's values where there is a judge, say how sure each answer is; the surest leads. What was
    decided, and why, is in the reply's `resolved`.

    Source: ours; the posterior is that of Adaptive-Consistency (arXiv 2305.11860).
    """

    params: AutoParams
    name: ClassVar[str] = "auto"
    Params: ClassVar[type[AutoParams]] = AutoParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Look, decide, and let another strategy do the rest of the work."""
        fresh = max(0, min(self.params.look, self.params.width) - len(search.given))
        drawn = await search.expand(search.root, fresh, self._sampling(search))
        samples = [*search.given, *drawn]
        if search.judge is not None:
            await search.score(samples)
        finished = [one for one in samples if one.is_finished]
        voters = search.usable(finished) or finished or samples
        weights = relative_confidences([one.logps for one in voters])
        groups = await groups_of(voters, weights)
        look = self._look(search, samples, voters if finished else [], groups)
        name, why = self._decide(search, samples, look)
        if name != "stop":
            try:
                return await self._delegate(search, name, samples, why)
            except UnsupportedByEngine as err:  # an option of the request that no step survives
                why = f"{why}, {name} cannot carry {err.capability}"
                return await self._delegate(search, "adaptive_consistency", samples, why)
        search.note(f"stop, {why}")
        if look.answers:
            groups.insert(0, groups.pop(look.leading))
        return search.outcome(ranked_by(groups, voters, weights))

    def _look(
        self, search: Search, samples: list[Branch], voters: list[Branch], groups: list[Group]
    ) -> FirstLook:
        if not voters:  # all were cut, and what a text says before its end is no answer
            return FirstLook((), len(samples))
        answers = []
        for group in groups:
            values = [self._probability(search, voters[at]) for at in group.members]
            known = [value for value in values if not math.isnan(value)]
            value = round(sum(known) / len(known), 5) if known else None
            answers.append(Stated(group.weight, len(group.members), value))
        return FirstLook(tuple(answers[: len(tally(groups))]), len(samples))

    def _decide(self, search: Search, samples: list[Branch], look: FirstLook) -> tuple[str, str]:
        """The strategy to go on with, or `stop`; and why."""
        left = self.params.width - len(samples)
        if left <= 0 or search.is_over or not samples:
            return "stop", "nothing is left to spend"
        if not look.answers:
            if search.judge is not None:
                return "best_of_n", "no sample comes to an answer"
            return "stop", "no sample comes to an answer, and there is no judge"
        verdict = look.verdict(self.params.threshold, self.params.hard_below)
        if verdict == "easy":
            return "stop", look.reason
        if verdict == "hard" and self._can_grow(search, samples, left):
            return self.params.tree, look.reason
        is_judged = verdict == "hard" and search.judge is not None
        return ("self_consistency" if is_judged else "adaptive_consistency"), look.reason

    def _can_grow(self, search: Search, samples: list[Branch], left: int) -> bool:
        """Whether a tree fits the engine, the judge and what is left of the budget."""
        has = search.engine.capabilities & {Capability.TOKENS, Capability.CONTINUE_TEXT}
        is_able = search.judge is not None and search.judge.kind is RewardKind.PROCESS and has
        if not is_able and "tree" in self.params.model_fields_set and self.params.tree != "none":
            search.ignore("bough.params.tree")
        if not is_able or self.params.tree == "none":
            return False
        # What the rest of the width would take if it went on as the samples did.
        share = left / len(samples)
        steps = [len(split_steps(one.text, search.engine.step_delimiters)) for one in samples]
        tokens = sum(one.num_tokens for one in samples)
        return _is_left(search, "generated_tokens", tokens * share) and _is_left(
            search, "candidates", sum(steps) * share
        )

    async def _delegate(
        self, search: Search, name: str, samples: list[Branch], why: str
    ) -> Outcome:
        params: dict[str, Any] = {"width": self.params.width}
        if name == "adaptive_consistency":
            params["threshold"] = self.params.threshold
        elif self.params.aggregate is not None:
            params["aggregate"] = self.params.aggregate
        if name == "self_consistency":
            params["vote"] = "weighted"
        outcome = await search.delegate(name, params, Limits(), given=samples, last=True)
        search.note(f"{name}, {why}")
        return outcome

    def _probability(self, search: Search, branch: Branch) -> float:
        """The judge's value as a probability; one outside 0 to 1 is a log-odds."""
        value = search.worth(branch, self.params.aggregate)
        judge = search.judge
        if judge is not None and (judge.low < 0 or judge.high > 1):
            return float(expit(value))
        return value

    def _sampling(self, search: Search) -> Sampling:
        """The request's sampling; log-probabilities too, where the engine has them."""
        has_logps = Capability.LOGPROBS in search.engine.capabilities
        return replace(search.sampling, logps=True) if has_logps else search.sampling


def _is_left(search: Search, what: Limited, amount: float) -> bool:
    left = search.budget.left(what)
    return left is None or left >= amount
