"""The population of a particle filter: its log-weights, its resampling, what it ends with.

What `particle_filter`, `particle_gibbs` and `entropic_particle_filter` share; when to do what is
theirs to say.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from reward_models.base import RewardKind
from search.answers import ANSWER_PHRASES
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.entropic import Lookahead, horizon, modulated, normalised_entropy
from search.particles import (
    Resampling,
    Weighting,
    carried,
    effective_size,
    log_increment,
    log_weight,
    resample,
    softmax,
)
from search.ranking import worth
from search.search import Search
from search.select import Aggregate, order_by_vote
from search.tree import Drawn, Resampled
from search.voting import groups_of

_FLOOR: Final = 5e-6  # half a unit of the rounding of values: nothing is known beyond it


class FilterParams(Params):
    """Parameters of every particle filter."""

    of_reference: ClassVar[Mapping[str, Any]] = {
        "resampling": "multinomial",
        "finished_policy": "compete",
    }

    mode: Literal["fixed", "reference"] = Field(
        default="fixed",
        description="Defaults of ours, or of the published code: there finished particles compete "
        "and those that are dropped come last.",
    )
    width: int = Field(default=16, ge=1, le=1024, description="Particles.")
    weights: Weighting = Field(
        default="odds_prefix",
        description="Log-weight of a particle: log-odds of its reward (odds_prefix), the reward "
        "itself (raw_softmax), or the sum of log r of its steps since the last resampling "
        "(incremental), which alone is unbiased.",
    )
    resampling: Resampling = Field(
        default="systematic",
        description="How the particles to go on with are drawn: systematic, stratified, residual "
        "or multinomial, in order of variance.",
    )
    resample_trigger: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Resample when the effective share of particles is at most this; 1 at every "
        "step, 0 never.",
    )
    softmax_temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Of the log-weights at resampling; larger is flatter.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of a particle's steps become its reward."
    )
    finished_policy: Literal["absorb", "compete"] = Field(
        default="absorb",
        description="Finished particles keep their place for good, or are resampled with the rest.",
    )
    choose: Literal["best", "vote", "sample"] = Field(
        default="best",
        description="The answer: of the highest reward, by a vote weighted with the particles' "
        "weights, or drawn by them.",
    )
    max_depth: int = Field(default=40, ge=1, le=1000, description="Steps of a particle.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_mode(cls, given: Any) -> Any:
        """What the request names wins over what its mode says."""
        if isinstance(given, Mapping) and given.get("mode") == "reference":
            return {**cls.of_reference, **given}
        return given


class Cloud:
    """`width` particles of one sweep; the same branch may be several of them.

    Args:
        search: The run.
        params: What they are weighed and drawn by.
        rng: The request's generator.
        reference: A particle of an earlier sweep that keeps a place of its own: after step t it
            is its own prefix of t steps, with that prefix's weight. It may be an ancestor, so all
            branches stay open to more children while there are references.
        reopens: Whether branches of this sweep may be continued in a later one.

    Attributes:
        step: Steps done.
        archive: Every particle that finished, in order.
    """

    def __init__(
        self,
        search: Search,
        params: FilterParams,
        rng: random.Random,
        *,
        reference: Branch | None = None,
        reopens: bool = False,
    ) -> None:
        self._search = search
        self._params = params
        self._rng = rng
        self._how = search.stepwise(params.max_step_tokens)
        self._lineage = reference.lineage if reference else []
        self._reopens = reopens
        self._logs: dict[Branch, float] = {search.root: 0.0}
        self._successors: dict[Branch, Branch] = {}
        self._absorbed: list[Branch] = []
        self._particles = [search.root] * (params.width - bool(reference))
        self.step = 0
        self.archive: list[Branch] = []

    async def take(self, given: Sequence[Branch]) -> None:
        """Finished branches that are paid for already take places, with their own weights."""
        await self._search.score(given)
        known = self._search.usable(given)
        for one in known:
            steps = self._search.step_values(one)
            self._logs[one] = self._log_weight(one, sum(map(self._log_increment, steps)))
        self.archive += known
        self._settle([*known, *self._particles[len(known) :]])

    @property
    def is_open(self) -> bool:
        """Whether any particle can still be extended, the reference included."""
        is_bound = self.step < len(self._lineage)
        return is_bound or any(one.finish is None for one in self._particles)

    @property
    def population(self) -> list[Branch]:
        """All particles as they stand, the reference as a whole."""
        bound = self._lineage[-1:] if self._reference else []
        return [*self._absorbed, *self._particles, *bound]

    @property
    def log_weights(self) -> list[float]:
        """Of those that take part in the next draw, in their order."""
        return [self._logs[one] / self._params.softmax_temperature for one in self._pool]

    @property
    def progress(self) -> float:
        """Share of the expected number of steps that is done, in 0..1."""
        depths = [one.depth for one in self.archive if one.is_finished]
        if self._params.mode == "reference":
            depths = []
        return min(1.0, self.step / horizon(depths, self._params.max_depth))

    async def extend(self) -> bool:
        """Extend every open particle by a step and judge it; False when nothing could be drawn."""
        parents = Counter(one for one in self._particles if one.finish is None)
        kept = [one for one in self._particles if one.finish is not None]
        reused = [self._successors[one] for one in parents if one in self._successors]
        wanted = {one: n - (one in self._successors) for one, n in parents.items()}
        self._successors.clear()
        drawn = await self._search.expand_all(
            wanted.items(), self._how, last=not self._reopens, closed_by=ANSWER_PHRASES
        )
        for one in wanted:
            if not wanted[one] and not self._reopens:
                await self._search.expand(one, 0, self._how, last=True)  # its claim goes back
        if parents and not reused and not drawn:
            return False
        self.step += 1
        await self._search.score(drawn)
        children = self._search.usable([*reused, *drawn])
        bound = self._lineage[self.step - 1 : self.step]
        for one in (*children, *bound):
            assert one.parent is not None
            above = self._logs.get(one.parent, 0.0)
            self._logs[one] = self._log_weight(one, above + self._newest(one, one.parent))
        self.archive += [one for one in children if one.finish is not None]
        self._settle([*kept, *children])
        return True

    async def look_ahead(self, how: Lookahead, *, reuse: bool) -> list[float]:
        """Log-weights for the next draw, from one sampled successor of every open particle.

        Args:
            how: How a particle's weight and its successor's become one.
            reuse: The first child of each ancestor will be that successor.
        """
        among = [one for one in self._particles if one.finish is None]
        found = await self._search.expand_all(
            [(one, 1) for one in among], self._how, closed_by=ANSWER_PHRASES
        )
        await self._search.score(found)
        successors = {one.parent: one for one in self._search.usable(found)}
        logs = []
        for one in self._pool:
            ahead = self._odds(successors.get(one, one))
            logs.append(modulated(self._logs[one], ahead, how))
        if reuse:
            self._successors = {one: successors[one] for one in among if one in successors}
        else:
            self._search.prune(found, "a look-ahead")
        return [one / self._params.softmax_temperature for one in logs]

    def resample(self, temperature: float = 1.0, logs: Sequence[float] | None = None) -> None:
        """Draw the particles to go on with, some several times; the others are pruned.

        Args:
            temperature: What the log-weights are divided by.
            logs: Those of the draw where they are not the particles' own, in their order.
        """
        pool, num_bound = self._pool, len(self._reference)
        count = self._params.width - len(self._absorbed) - num_bound
        if count <= 0:
            return
        logs = self.log_weights if logs is None else logs
        plain, weights = softmax(logs), softmax(logs, temperature)
        is_level = effective_size(plain) > self._params.resample_trigger * len(pool)
        if len(pool) == count + num_bound and is_level:
            return
        at = resample(weights, count, self._params.resampling, self._rng)
        drawn = [pool[one] for one in at]
        self._record(plain, temperature, drawn)
        if self._params.weights == "incremental":
            self._logs |= self._carried(pool, weights, count + num_bound)
        lost = {one for one in self._particles if one.finish is None} - set(drawn)
        lost -= set(self._lineage)
        ahead = {self._successors[one] for one in lost if one in self._successors}
        self._search.prune(sorted(lost | ahead, key=lambda one: one.id), "not resampled")
        self._particles = drawn

    def draw(self) -> Branch | None:
        """One particle by its weight: the reference of the next sweep; None while there is none."""
        among = [one for one in self.population if one is not self._search.root]
        if not among:
            return None
        weights = softmax([self._final_log(one) for one in among])
        (at,) = resample(weights, 1, "multinomial", self._rng)
        return among[at]

    async def outcome(self, archive: Sequence[Branch] = ()) -> Outcome:
        """Rank what finished by itself, then the rest; `archive` is of earlier sweeps."""
        search, population = self._search, list(dict.fromkeys(self.population))
        everyone = dict.fromkeys([*archive, *self.archive, *population])
        ended = [one for one in everyone if one.is_finished]
        if self._params.mode == "reference" or not self._archive_votes:
            ended = [one for one in population if one.is_finished] or ended
        order = await self._order(ended) if ended else []
        first = [ended[at] for at in order]
        rest = search.best(one for one in everyone if one not in first and one is not search.root)
        return search.outcome(
            [Ranked(one, worth(search, one, self._params.aggregate)) for one in (*first, *rest)]
        )

    @property
    def _archive_votes(self) -> bool:
        """Whether particles that were dropped count; carried weights are the survivors' alone."""
        return self._params.weights != "incremental" or self._params.choose == "best"

    @property
    def _reference(self) -> list[Branch]:
        """The reference's prefix of so many steps, while it has a place in the draw."""
        if not self._lineage or not self.step:
            return []
        prefix = self._lineage[min(self.step, len(self._lineage)) - 1]
        is_out = prefix.finish is not None and self._params.finished_policy == "absorb"
        return [] if is_out else [prefix]

    @property
    def _pool(self) -> list[Branch]:
        return [*self._particles, *self._reference]

    def _settle(self, particles: Sequence[Branch]) -> None:
        """Finished particles leave the draw where they are absorbed; the reference likewise."""
        is_absorbing = self._params.finished_policy == "absorb"
        self._particles = [one for one in particles if one.finish is None or not is_absorbing]
        self._absorbed += [one for one in particles if one.finish is not None and is_absorbing]
        if is_absorbing and self._lineage and self.step == len(self._lineage):
            self._absorbed += [one for one in self._lineage[-1:] if one.finish is not None]

    def _carried(
        self, pool: Sequence[Branch], weights: Sequence[float], count: int
    ) -> dict[Branch, float]:
        return {
            one: carried(self._logs[one], weight, count)
            for one, weight in zip(pool, weights, strict=True)
            if weight > 0
        }

    def _record(self, plain: Sequence[float], temperature: float, drawn: Sequence[Branch]) -> None:
        for branch, copies in Counter(drawn).items():
            self._search.tree.record(Resampled(branch.id, copies))
        self._search.tree.record(
            Drawn(
                depth=self.step,
                particles=len(plain),
                effective_size=round(effective_size(plain), 5),
                entropy=round(normalised_entropy(plain), 5),
                temperature=round(temperature, 5),
                ancestors=len(set(drawn)),
                first_steps=len({one.path[:1] for one in drawn}),
            )
        )

    async def _order(self, ended: Sequence[Branch]) -> list[int]:
        odds = [self._odds(one) for one in ended]
        best_first = sorted(range(len(ended)), key=lambda at: -odds[at])
        if self._params.choose == "best":
            return best_first
        copies = Counter(self.population)
        logs = odds
        if self._params.weights == "incremental":
            logs = [self._final_log(one) + math.log(max(1, copies[one])) for one in ended]
        weights = softmax(logs)  # of temperature 1: that of resampling says nothing of answers
        if self._params.choose == "vote":
            return order_by_vote(await groups_of(ended, weights), weights)
        (first,) = resample(weights, 1, "multinomial", self._rng)
        return [first, *(at for at in best_first if at != first)]

    def _final_log(self, particle: Branch) -> float:
        """Its log-weight; of a reference that was not followed to its end, its prefix's."""
        prefix = self._reference[0] if self._reference else particle
        return self._logs.get(particle, self._logs.get(prefix, 0.0))

    def _log_weight(self, particle: Branch, accumulated: float) -> float:
        if self._params.weights == "incremental":
            return accumulated
        if self._params.weights == "raw_softmax":
            return self._search.worth(particle, self._params.aggregate)
        return self._odds(particle)

    def _odds(self, particle: Branch) -> float:
        """The odds of its reward; a judge that does not stay in 0..1 gives log-odds itself."""
        steps = self._search.step_values(particle)
        if self._gives_odds:
            return self._search.worth(particle, self._params.aggregate)
        return log_weight(steps, self._search.aggregate(self._params.aggregate), _FLOOR)

    def _newest(self, particle: Branch, parent: Branch) -> float:
        """Log r of the steps that a particle has and its parent has not.

        A particle may end without a new step: then nothing is counted twice. Where the judge
        values answers as a whole, the ratio of the two values.
        """
        steps, before = self._search.step_values(particle), self._search.step_values(parent)
        judge = self._search.judge
        is_process = judge is None or judge.kind is RewardKind.PROCESS
        if self._search.reads_whole or not is_process:
            return sum(map(self._log_increment, steps)) - sum(map(self._log_increment, before))
        return sum(map(self._log_increment, steps[len(before) :]))

    def _log_increment(self, value: float) -> float:
        if self._gives_odds:  # log of the logistic function, without overflow
            return min(value, 0.0) - math.log1p(math.exp(-abs(value)))
        return log_increment(value, _FLOOR)

    @property
    def _gives_odds(self) -> bool:
        judge = self._search.judge
        return judge is not None and (judge.low < 0 or judge.high > 1)


async def sweep(cloud: Cloud, max_depth: int) -> None:
    """Resample, extend, judge, step by step; nothing is resampled after the last step."""
    while cloud.is_open and cloud.step < max_depth:
        if cloud.step:
            cloud.resample()
        if not await cloud.extend():
            break
