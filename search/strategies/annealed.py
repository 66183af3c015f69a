"""Exploratory annealed decoding: answers that begin hot and end cold, then a choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from engines.base import Capability, Sampling
from search.base import Outcome, Params
from search.branch import Branch
from search.ranking import by_worth
from search.schedules import Annealed, Unsized
from search.search import Search
from search.select import Aggregate
from search.voting import groups_of, ranked_by


class AnnealedParams(Params):
    """Parameters of `annealed`."""

    width: int = Field(default=8, ge=1, le=1024, description="Answers to draw, the pilot's too.")
    tau_max: float = Field(
        default=1.2, gt=0, le=2, description="Temperature that the curve begins with."
    )
    tau_min: float = Field(
        default=0.1,
        gt=0,
        le=2,
        validate_default=True,
        description="Temperature that it ends with, at most tau_max.",
    )
    decay_tokens: float | None = Field(
        default=None,
        gt=0,
        description="How slowly it cools, in tokens; sized by the pilot where left out.",
    )
    warmup_tokens: int = Field(
        default=10, ge=0, description="First tokens, which have the request's own temperature."
    )
    floor_ratio: float = Field(
        default=1.0,
        gt=0,
        description="Where tau_min is reached, as a share of the pilot's median length.",
    )
    pilot: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Answers drawn first at the request's temperature, to see how long they are; "
        "at most half of width. They are candidates like the others.",
    )
    choose: Literal["majority", "weighted", "best"] = Field(
        default="majority",
        description="The answer: by votes, by votes weighted with the judge's values, or the one "
        "that the judge values most.",
    )
    aggregate: Aggregate | None = Field(
        default=None,
        description="With a judge: how the values of an answer's steps become one.",
    )

    @field_validator("tau_min")
    @classmethod
    def _cools(cls, tau_min: float, info: ValidationInfo) -> float:
        if tau_min > info.data.get("tau_max", tau_min):
            raise ValueError(f"it is above tau_max, {info.data['tau_max']}")
        return tau_min


_OF_SCHEDULE = ("tau_max", "tau_min", "decay_tokens", "warmup_tokens", "floor_ratio", "pilot")


@dataclass(frozen=True)
class AnnealedDecoding:
    """Draw `width` answers whose temperature falls with the position, and let them vote.

    Source: Yang et al., "Let it Calm: Exploratory Annealed Decoding for Verifiable Reinforcement
    Learning", arXiv 2510.05251, at plain inference (majority@k).
    Differs: the decay is sized by answers of this very question, as the authors' later notes do
    with a few hundred of a task; the pilot's answers have a vote; a schedule that the request
    itself names takes the place of this one.
    """

    params: AnnealedParams
    name: ClassVar[str] = "annealed"
    Params: ClassVar[type[AnnealedParams]] = AnnealedParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.SCHEDULE})

    @property
    def needs_judge(self) -> bool:
        """Only weighted votes and the best answer are judged."""
        return self.params.choose != "majority"

    async def run(self, search: Search) -> Outcome:
        """Draw, the last of them annealed; a vote's score is the group's share."""
        samples = list(search.given)
        pilot = await search.expand(search.root, self._num_pilots(search))
        samples += pilot
        how = self._cooling(search, samples)
        fresh = max(0, self.params.width - len(samples))
        samples += await search.expand(search.root, fresh, how, last=True)
        voters = [one for one in samples if one.is_finished] or samples
        if self.needs_judge:
            await search.score(voters)
            voters = search.usable(voters)
        if self.params.choose == "best":
            return by_worth(search, voters, (), self.params.aggregate)
        weights = [self._weight(search, one) for one in voters]
        groups = await groups_of(voters, weights)
        return search.outcome(ranked_by(groups, voters, weights))

    def _num_pilots(self, search: Search) -> int:
        """Answers still to be drawn before the decay can be sized."""
        is_sized = self.params.decay_tokens is not None or search.sampling.schedule is not None
        if is_sized or search.sampling.temperature == 0:
            return 0
        most = min(self.params.pilot, max(1, self.params.width // 2))
        return max(0, most - len(search.given))

    def _cooling(self, search: Search, seen: list[Branch]) -> Sampling:
        """The request's sampling with this strategy's schedule, sized by what was seen."""
        params, sampling = self.params, search.sampling
        if sampling.schedule is not None or sampling.temperature == 0:
            for name in _OF_SCHEDULE:
                if name in params.model_fields_set:
                    search.ignore(f"bough.params.{name}")
            return sampling
        base = sampling.temperature
        if params.decay_tokens is not None:
            schedule = Annealed(
                params.tau_max, params.tau_min, params.decay_tokens, params.warmup_tokens, base
            )
            return replace(sampling, schedule=schedule)
        unsized = Unsized(
            params.tau_max, params.tau_min, params.warmup_tokens, base, params.floor_ratio
        )
        ended = [one for one in seen if one.is_finished] or seen
        schedule = unsized.sized([one.num_tokens for one in ended] or [1])
        search.note(f"decay_tokens {schedule.decay_tokens}")
        return replace(sampling, schedule=schedule)

    def _weight(self, search: Search, branch: Branch) -> float:
        return search.worth(branch, self.params.aggregate) if self.needs_judge else 1.0
