"""Entropic particle filtering: a particle filter that does not settle on one ancestor early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from engines.base import Capability
from search.base import Outcome
from search.entropic import Annealing, is_collapsing, temperature
from search.filtering import Cloud, FilterParams
from search.search import Search


class EntropicParticleFilterParams(FilterParams):
    """Parameters of `entropic_particle_filter`."""

    of_reference: ClassVar[Mapping[str, Any]] = {"finished_policy": "compete"}

    annealing: Annealing = Field(
        default="ess",
        description="Temperature of a draw that would collapse: (N / ESS)(1 - p) (ess), "
        "1 / (H + (1 - H) p) (entropy), 2 - p (base), or what brings ESS up to target_ratio "
        "(bisect); p is the share of steps done, H the normalised entropy.",
    )
    ess_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Anneal where ESS / N is below this."
    )
    early_phase: float = Field(
        default=0.5, ge=0, le=1, description="Anneal while the share of steps done is below this."
    )
    target_ratio: float = Field(
        default=0.5, gt=0, le=1, description="ESS / N that `bisect` brings about."
    )
    lookahead: Literal["none", "product", "successor", "mean"] = Field(
        default="none",
        description="Sample a successor of every particle before the draw, and weigh it with its "
        "own weight times the successor's (product), the successor's (successor), or the root of "
        "the product (mean).",
    )
    reuse_successor: bool = Field(
        default=True, description="The first child of a particle is the successor sampled already."
    )


@dataclass(frozen=True)
class EntropicParticleFilter:
    """A particle filter whose draws are flattened while it is young and its weights are uneven.

    Process rewards are too sure of themselves early. Where the effective share of particles is
    below a threshold in the early part of the run, the log-weights are divided by a temperature
    before the draw; an optional look-ahead weighs a particle with what comes next.

    Source: Giannone et al., arXiv 2510.05825, in the form of its_hub 1.2.0. The paper's own
    weights for the look-ahead are not public; the three here are ours.
    Differs: the share of steps done is measured against the median length of the particles that
    have finished, once there are any, instead of the limit on steps, at which annealing would
    hardly ever end (`mode: reference` does that); `bisect` is ours; what `particle_filter` differs
    in. With `incremental` weights draws are corrected for the temperature and for the look-ahead.
    """

    params: EntropicParticleFilterParams
    name: ClassVar[str] = "entropic_particle_filter"
    Params: ClassVar[type[EntropicParticleFilterParams]] = EntropicParticleFilterParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Look ahead, anneal, resample, extend, judge, step by step; then choose."""
        params = self.params
        cloud = Cloud(search, params, search.rng())
        await cloud.take(search.given)
        while cloud.is_open and cloud.step < params.max_depth:
            if cloud.step:
                logs = cloud.log_weights
                if params.lookahead != "none":
                    logs = await cloud.look_ahead(params.lookahead, reuse=params.reuse_successor)
                cloud.resample(self._temperature(logs, cloud.progress), logs)
            if not await cloud.extend():
                break
        return await cloud.outcome()

    def _temperature(self, logs: list[float], progress: float) -> float:
        params = self.params
        if not logs or not is_collapsing(logs, progress, params.ess_threshold, params.early_phase):
            return 1.0
        return temperature(logs, progress, params.annealing, params.target_ratio)
