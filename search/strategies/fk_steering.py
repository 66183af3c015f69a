"""Feynman-Kac steering: particles of masked text, resampled by what they may become."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability, Engine, Sampling
from engines.errors import UnsupportedByEngine
from search.base import Outcome, Ranked
from search.branch import Branch
from search.budget import Limited
from search.chains import Chain, chain_of
from search.diffusion_tree import branch_levels, soft_value
from search.entropic import normalised_entropy
from search.particles import Resampling, effective_size, resample, softmax
from search.search import Search
from search.select import Aggregate
from search.steering import Potential, Steered, finish, steer
from search.tree import Drawn, Resampled
from search.tree_search import ChainParams, beside


class FkSteeringParams(ChainParams):
    """Parameters of `fk_steering`."""

    width: int = Field(default=8, ge=1, le=1024, description="Particles.")
    lambda_: float = Field(
        default=10.0,
        alias="lambda",
        gt=0,
        le=1e6,
        description="Particles are weighted with exp(lambda · estimated reward).",
    )
    potential: Potential = Field(
        default="max",
        description="What a weight is made of: the largest estimate so far (max), what the "
        "estimate gained (diff), or the estimate itself (rt).",
    )
    resample_every: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Denoising steps between resamplings; by default at the branch levels of dts.",
    )
    guesses: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Texts drawn in one shot to estimate a particle's reward, an evaluation each.",
    )
    resample_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Resample when the effective size falls below this share of the particles; 1 "
        "is always.",
    )
    choose: Literal["best", "sample"] = Field(
        default="best",
        description="The answer: the particle of the best text, or one drawn by the final weights.",
    )
    resampling: Resampling = Field(default="multinomial", description="How ancestors are drawn.")
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of an answer's steps become one."
    )


@dataclass(frozen=True)
class FkSteering:
    """Denoise particles together; now and then keep those that promise most, several times each.

    Source: Singhal et al., "A General Framework for Inference-time Scaling and Steering of
    Diffusion Models", arXiv 2501.06848; adaptive resampling as in arXiv 2506.20701, appendix G.
    Differs: the history of `max` begins at minus infinity instead of 0 (see `search.steering`);
    the guesses at the finished text are evaluations of their own and counted; nothing is resampled
    after the last step, and the best particle is returned; weights are kept until a resampling.
    """

    params: FkSteeringParams
    name: ClassVar[str] = "fk_steering"
    Params: ClassVar[type[FkSteeringParams]] = FkSteeringParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.DENOISE})
    needs_judge: ClassVar[bool] = True

    def check(self, engine: Engine, how: Sampling) -> None:
        """Refuse a chain that cannot be, or has no chance in it."""
        if chain_of(engine, (), how, self.params.options).info.block_size:
            raise UnsupportedByEngine(
                "guesses",
                engine.info.model_id,
                "its server denoises whole blocks and guesses at nothing in one shot; use dts_star",
            )

    async def run(self, search: Search) -> Outcome:
        """Denoise to the next resampling, guess, weigh, resample; at the end the best text."""
        given = await beside(search, self.params.aggregate)
        chain, rng = search.chain(**self.params.options), search.rng()
        stops = self._stops(chain.steps)
        cloud = [_Particle(search.root) for _ in range(self._width(search, chain, stops))]
        for stop in (*stops, chain.steps):
            cloud = await self._denoised(search, chain, cloud, stop)
            if stop < chain.steps and cloud:
                await self._weigh(search, chain, cloud)
                cloud = self._resampled(search, cloud, rng)
        return await self._chosen(search, cloud, given, rng)

    async def _chosen(
        self, search: Search, cloud: list[_Particle], given: list[Ranked], rng: random.Random
    ) -> Outcome:
        """The best text, or one in proportion to the model's probability times exp(λ · reward)."""
        params = self.params
        await search.score([one.branch for one in cloud])
        usable = set(search.usable(one.branch for one in cloud))
        ended = [one for one in cloud if one.branch in usable]
        worths = [search.worth(one.branch, params.aggregate) for one in ended]
        ranked = [Ranked(one.branch, worth) for one, worth in zip(ended, worths, strict=True)]
        lead: list[Ranked] = []
        if params.choose == "sample" and ended:
            weights = softmax(
                [
                    one.log_weight + finish(one.history, worth, params.lambda_)
                    for one, worth in zip(ended, worths, strict=True)
                ]
            )
            lead = [ranked[resample(weights, 1, "multinomial", rng)[0]]]
        rest = sorted([*given, *ranked], key=lambda one: -(one.score or 0.0))
        return search.outcome([*lead, *rest])

    def _stops(self, steps: int) -> list[int]:
        """Steps after which particles are weighed."""
        every = self.params.resample_every
        if every is not None:
            return list(range(every, steps, every))
        return [steps - left for left in branch_levels(steps)[1:]]

    def _width(self, search: Search, chain: Chain, stops: list[int]) -> int:
        """Particles that can be paid for to their end; the others are not begun."""
        one = chain.cost(chain.start, 0)
        looks = len(stops) * self.params.guesses
        price: dict[Limited, int] = {
            "nfe": one["nfe"] + looks * chain.guess_nfe,
            "generated_tokens": one["generated_tokens"] + looks * chain.length,
            "candidates": len(stops) + 1 + looks,
            "reward_calls": 1 + looks,
        }
        width = self.params.width
        for what, amount in price.items():
            width = search.budget.cut_to(what, width, amount)
        return width

    async def _denoised(
        self, search: Search, chain: Chain, cloud: list[_Particle], stop: int
    ) -> list[_Particle]:
        jobs = [(one.branch, chain.job(one.branch, stop)) for one in cloud]
        children = await search.denoise(jobs)
        return [
            _Particle(child, one.history, one.log_weight)
            for one, child in zip(cloud, children, strict=False)
        ]

    async def _weigh(self, search: Search, chain: Chain, cloud: list[_Particle]) -> None:
        """Multiply each weight by the potential of a guess at the particle's reward."""
        jobs = [
            (one.branch, chain.one_shot(one.branch))
            for one in cloud
            for _ in range(self.params.guesses)
        ]
        guesses = await search.denoise(jobs)
        await search.score(guesses)
        by_parent: dict[Branch, list[float]] = {}
        for guess in search.usable(guesses):
            assert guess.parent is not None
            worth = search.worth(guess, self.params.aggregate)
            by_parent.setdefault(guess.parent, []).append(worth)
        search.prune(guesses, "a guess at what its particle may become")
        for one in cloud:
            if one.branch in by_parent:  # without a guess the weight stays
                estimate = soft_value(by_parent[one.branch], self.params.lambda_)
                gained, one.history = steer(
                    one.history, estimate, self.params.lambda_, self.params.potential
                )
                one.log_weight += gained

    def _resampled(
        self, search: Search, cloud: list[_Particle], rng: random.Random
    ) -> list[_Particle]:
        weights = softmax([one.log_weight for one in cloud])
        size = effective_size(weights)
        if size >= self.params.resample_below * len(cloud) and self.params.resample_below < 1:
            return cloud
        chosen = resample(weights, len(cloud), self.params.resampling, rng)
        for at in sorted(set(chosen)):
            search.tree.record(Resampled(cloud[at].branch.id, chosen.count(at)))
        search.prune(
            [one.branch for at, one in enumerate(cloud) if at not in chosen], "not resampled"
        )
        kept = [cloud[at] for at in chosen]
        search.tree.record(
            Drawn(
                depth=kept[0].branch.depth,
                particles=len(cloud),
                effective_size=round(size, 5),
                entropy=round(normalised_entropy(weights), 5),
                temperature=1.0,
                ancestors=len(set(chosen)),
                first_steps=len({one.branch.path[:1] for one in kept}),
            )
        )
        return [_Particle(one.branch, one.history) for one in kept]


@dataclass(eq=False)
class _Particle:
    branch: Branch
    history: Steered = field(default_factory=Steered)
    log_weight: float = 0.0
