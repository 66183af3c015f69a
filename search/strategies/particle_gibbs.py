"""Particle Gibbs: sweeps of a particle filter, each around a particle of the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome
from search.branch import Branch
from search.filtering import Cloud, FilterParams, sweep
from search.particles import Resampling
from search.search import Search


class ParticleGibbsParams(FilterParams):
    """Parameters of `particle_gibbs`."""

    width: int = Field(
        default=8, ge=2, le=1024, description="Particles of a sweep, the reference among them."
    )
    iterations: int = Field(default=2, ge=1, le=64, description="Sweeps; 1 is a particle filter.")
    resampling: Resampling = Field(
        default="multinomial",
        description="How the free particles are drawn; sweeps leave the posterior as it is with "
        "multinomial draws only.",
    )


@dataclass(frozen=True)
class ParticleGibbs:
    """Run a particle filter; draw a reference from it; run it again around the reference.

    In a later sweep the reference keeps one place. At step t it stands in the draw as its own
    prefix of t steps, with the score of that prefix, and may be an ancestor: then a fresh particle
    goes on from there.

    Source: Puri et al., arXiv 2502.01618, Appendix B.1, Algorithm 2.
    Differs: the published codes let the reference compete with the score of its whole answer
    (its_hub) or of one step more (the authors' code). The answers of all sweeps are candidates,
    those of the last one first with `mode: reference`. No ancestor sampling, no tempering.
    """

    params: ParticleGibbsParams
    name: ClassVar[str] = "particle_gibbs"
    Params: ClassVar[type[ParticleGibbsParams]] = ParticleGibbsParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Sweep, draw a reference, sweep around it; then choose."""
        rng, archive = search.rng(), list[Branch]()
        cloud = Cloud(search, self.params, rng, reopens=True)
        await cloud.take(search.given)
        await sweep(cloud, self.params.max_depth)
        for _ in range(1, self.params.iterations):
            reference = cloud.draw()
            if search.is_over or reference is None:
                break
            archive += cloud.archive
            cloud = Cloud(search, self.params, rng, reference=reference, reopens=True)
            await sweep(cloud, self.params.max_depth)
        return await cloud.outcome(archive)
