"""Particle filtering: resample partial answers in proportion to what the judge makes of them."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import Field

from engines.base import Capability
from search.answers import ANSWER_PHRASES, extract_answer
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.particles import Resampling, effective_size, log_weight, resample, softmax
from search.search import Search
from search.select import Aggregate, aggregated, order_by_vote, vote
from search.tree import Resampled

_FLOOR: Final = 5e-6  # half a unit of the rounding of values: nothing is known beyond it


class ParticleFilterParams(Params):
    """Parameters of `particle_filter`."""

    width: int = Field(default=16, ge=1, le=1024, description="Particles.")
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
    aggregate: Aggregate = Field(
        default="last", description="How the values of a particle's steps become its reward."
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


@dataclass(frozen=True)
class ParticleFilter:
    """Extend every particle by a step, judge, resample by weight, until all have finished.

    A particle's weight is the odds of its reward, r / (1 - r), read anew at every step.

    Source: Puri et al., "Rollout Roulette: A Probabilistic Inference Approach to Inference-Time
    Scaling of LLMs using Particle-Based Monte Carlo Methods", arXiv 2502.01618, Algorithm 1, with
    the weights of its code and of its_hub 1.2.0.
    Differs: nothing is resampled after the last step and no finished particle is lost, so the best
    one is always returned; systematic resampling and absorbing finished particles by default
    (multinomial and competing ones in the code); rewards are clipped at 5e-6, half a unit of
    their rounding, instead of 1e-7; a particle whose judgement failed is replaced at the next
    resampling.
    """

    params: ParticleFilterParams
    name: ClassVar[str] = "particle_filter"
    Params: ClassVar[type[ParticleFilterParams]] = ParticleFilterParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Resample, extend, judge, step by step; then choose."""
        rng, how = search.rng(), search.stepwise(self.params.max_step_tokens)
        finished: list[Branch] = []
        particles = [search.root] * self.params.width
        for step in range(self.params.max_depth):
            if step:
                particles = self._resampled(search, particles, len(finished), rng)
            parents = Counter(one for one in particles if one.finish is None)
            children = await search.expand_all(
                parents.items(), how, last=True, closed_by=ANSWER_PHRASES
            )
            if not children:
                break
            await search.score(children)
            children = search.usable(children)
            finished += [one for one in children if one.finish is not None]
            particles = [one for one in (*particles, *children) if self._stays(one, parents)]
            if all(one.finish is not None for one in particles):
                break
        return await self._chosen(search, finished, particles, rng)

    def _stays(self, particle: Branch, parents: Counter[Branch]) -> bool:
        """Whether it takes part in the next resampling; what was extended does not."""
        if particle.finish is not None:
            return self.params.finished_policy == "compete"
        return particle not in parents

    def _resampled(
        self, search: Search, particles: list[Branch], num_finished: int, rng: random.Random
    ) -> list[Branch]:
        """The particles to go on with, some several times; the others are pruned."""
        is_absorbing = self.params.finished_policy == "absorb"
        count = self.params.width - num_finished * is_absorbing
        logs = [self._log_weight(search, one) for one in particles]
        weights = softmax(logs, self.params.softmax_temperature)
        is_level = effective_size(weights) > self.params.resample_trigger * len(particles)
        if len(particles) == count and is_level:
            return particles
        drawn = [particles[at] for at in resample(weights, count, self.params.resampling, rng)]
        for branch, copies in Counter(drawn).items():
            search.tree.record(Resampled(branch.id, copies))
        lost = {one for one in particles if one.finish is None} - set(drawn)
        search.prune(sorted(lost, key=lambda one: one.id), "not resampled")
        return drawn

    async def _chosen(
        self, search: Search, finished: list[Branch], particles: list[Branch], rng: random.Random
    ) -> Outcome:
        """Rank the finished particles; those that were cut only where none ended by itself."""
        ended = [one for one in finished if one.is_finished]
        others = dict.fromkeys(one for one in (*finished, *particles) if one is not search.root)
        rest = [one for one in search.best(others) if one not in ended]
        order = await self._order(search, ended, rng) if ended else []
        ranked = [*(ended[at] for at in order), *rest]
        return search.outcome([Ranked(one, self._reward(search, one)) for one in ranked])

    async def _order(self, search: Search, ended: list[Branch], rng: random.Random) -> list[int]:
        logs = [self._log_weight(search, one) for one in ended]
        best_first = sorted(range(len(ended)), key=lambda at: -logs[at])
        if self.params.choose == "best":
            return best_first
        weights = softmax(logs)  # of temperature 1: that of resampling says nothing of answers
        if self.params.choose == "vote":
            answers = [extract_answer(one.text) for one in ended]
            groups = await asyncio.to_thread(vote, answers, weights)  # algebra may take its time
            return order_by_vote(groups, weights)
        (first,) = resample(weights, 1, "multinomial", rng)
        return [first, *(at for at in best_first if at != first)]

    def _log_weight(self, search: Search, particle: Branch) -> float:
        """The odds of its reward; a judge that does not stay in 0..1 gives log-odds itself."""
        steps, judge = search.step_values(particle), search.judge
        if judge is not None and (judge.low < 0 or judge.high > 1):
            return aggregated(steps, self.params.aggregate)
        return log_weight(steps, self.params.aggregate, _FLOOR)

    def _reward(self, search: Search, particle: Branch) -> float | None:
        value = aggregated(search.step_values(particle), self.params.aggregate)
        return None if math.isnan(value) else value
