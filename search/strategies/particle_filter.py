"""Particle filtering: resample partial answers in proportion to what the judge makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engines.base import Capability
from search.base import Outcome
from search.filtering import Cloud, FilterParams, sweep
from search.search import Search


class ParticleFilterParams(FilterParams):
    """Parameters of `particle_filter`."""


@dataclass(frozen=True)
class ParticleFilter:
    """Extend every particle by a step, judge, resample by weight, until all have finished.

    A particle's weight is the odds of its reward, r / (1 - r), read anew at every step.

    Source: Puri et al., "Rollout Roulette: A Probabilistic Inference Approach to Inference-Time
    Scaling of LLMs using Particle-Based Monte Carlo Methods", arXiv 2502.01618, Algorithm 1, with
    the weights of its code and of its_hub 1.2.0.
    Differs: nothing is resampled after the last step and no finished particle is lost, so the best
    one is always returned; systematic resampling and absorbing finished particles by default
    (multinomial and competing ones in the code, and with `mode: reference`); rewards are clipped
    at 5e-6, half a unit of their rounding, instead of 1e-7; a particle whose judgement failed is
    replaced at the next resampling. Weights of `incremental` are ours: with them the sums over
    particles are unbiased, as the paper's theorem has it and its code does not.
    """

    params: ParticleFilterParams
    name: ClassVar[str] = "particle_filter"
    Params: ClassVar[type[ParticleFilterParams]] = ParticleFilterParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Resample, extend, judge, step by step; then choose."""
        cloud = Cloud(search, self.params, search.rng())
        await cloud.take(search.given)
        await sweep(cloud, self.params.max_depth)
        return await cloud.outcome()
