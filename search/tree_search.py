"""What the strategies that grow trees of denoising rollouts have in common: knobs and their run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from engines.base import Engine, Sampling
from search.base import Params, Ranked
from search.chains import Chain, chain_of
from search.diffusion_tree import Rules, branch_levels, widening_for
from search.errors import InvalidParameter
from search.rollouts import Bounds, PickFor, Rollouts
from search.search import Search
from search.select import Aggregate
from search.tree_shelf import TreeShelf

DEFAULT_SAMPLES: Final = 32
"""Whole texts that a request is worth which says nothing of its budget."""

_SPINS: Final = 64
"""Selections for each whole text of the budget; those that end in a known text cost nothing."""


def _number(value: Any) -> Any:
    return math.inf if value == "inf" else value


Unbounded = Annotated[
    float,
    Field(gt=0, allow_inf_nan=True),
    BeforeValidator(_number),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "inf"}]}),
]
"""A number above 0; `inf` as text, because JSON has no such number."""


class ChainParams(Params):
    """How the reverse chain goes; what is left out is as the model's own samples have it."""

    kernel: str | None = Field(default=None, description="How positions are revealed.")
    steps: int | None = Field(default=None, ge=1, le=4096, description="Denoising steps of a text.")
    block_length: int | None = Field(
        default=None, ge=1, le=65536, description="Positions revealed together, left to right."
    )
    position_temperature: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Above 0 confidence kernels draw the positions that they reveal.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Fields of `Kernel`, None where the engine's own stands."""
        return {
            "name": self.kernel,
            "steps": self.steps,
            "block_length": self.block_length,
            "position_temperature": self.position_temperature,
        }


class TreeSearchParams(ChainParams):
    """Parameters of `dts` and `dts_star`."""

    width: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Rollouts under way at once; 1 is the sequential algorithm.",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Budget in whole texts, each worth as many evaluations as it takes; beside the "
        f"request's max_nfe, and {DEFAULT_SAMPLES} where neither is given.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Most selections, those that end in a known text included.",
    )
    lambda_: Unbounded | None = Field(default=None, alias="lambda")
    capacity: Unbounded | None = Field(
        default=None,
        description="C: a node takes C · N^alpha children before the search goes through it; inf "
        "is best-of-n. By default what suits the budget.",
    )
    alpha: float | None = Field(
        default=None, gt=0, lt=1, description="Lower goes deeper sooner. By default by the budget."
    )
    branch_levels: list[int] | None = Field(
        default=None,
        max_length=256,
        description="Denoising steps left where the tree may branch; the first step always.",
    )
    merge: bool = Field(
        default=True,
        description="Whether equal children of a node are one that counts as often.",
    )
    target: float | None = Field(
        default=None, description="Stop at an answer of this reward, and give it."
    )
    reuse: bool = Field(
        default=True,
        description="Go on with the tree that earlier requests of this prompt grew, and store it. "
        "With a seed in the request only where this is given.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of an answer's steps become one."
    )


def check_tree(params: TreeSearchParams, strategy: str, engine: Engine, how: Sampling) -> None:
    """Refuse before any work a chain that cannot be, has no chance in it, or other levels.

    Raises:
        UnsupportedByEngine: The engine does not denoise.
        DenoiseError: The chain cannot be, or nothing in it is random.
        InvalidParameter: A branch level that is no step of the chain.
    """
    _levels(params, strategy, chain_of(engine, (), how, params.options))


def _levels(params: TreeSearchParams, strategy: str, chain: Chain) -> tuple[int, ...]:
    try:
        surest_first = chain.kernel.name not in chain.info.stochastic
        return branch_levels(chain.steps, params.branch_levels, surest_first=surest_first)
    except ValueError as err:
        raise InvalidParameter("branch_levels", strategy, str(err)) from err


async def grown(
    search: Search, params: TreeSearchParams, strategy: str, sharpness: float, pick_for: PickFor
) -> Rollouts:
    """The tree after all that the request may spend: stored rollouts first, then new ones.

    Raises:
        DenoiseError: The chain cannot be, or nothing in it is random.
    """
    chain = search.chain(**params.options)
    whole = chain.cost(chain.start, 0)["nfe"]
    own = params.samples and params.samples * whole
    if own is None and params.iterations is None and search.budget.left("nfe") is None:
        own = DEFAULT_SAMPLES * whole
    budget = min((one for one in (own, search.budget.left("nfe")) if one is not None), default=None)
    samples = math.inf if budget is None else budget / whole
    growth, exponent = widening_for(samples)
    rollouts = Rollouts(
        search,
        chain,
        _levels(params, strategy, chain),
        Rules(
            params.capacity or growth,
            params.alpha or exponent,
            sharpness,
            merges=params.merge,
        ),
        Bounds(own, params.iterations or _SPINS * max(1, math.ceil(samples)), params.target),
        params.width,
        pick_for,
        params.aggregate,
    )
    is_fresh = search.sampling.seed is not None and "reuse" not in params.model_fields_set
    if not params.reuse or is_fresh:
        await rollouts.grow()
        return rollouts
    shelf = TreeShelf(search, rollouts)
    await shelf.load()
    try:
        await rollouts.grow()
    finally:  # what landed was paid for: the next request has it even where this one fails
        await shelf.save()
    return rollouts


async def beside(search: Search, aggregate: Aggregate | None) -> list[Ranked]:
    """Answers that an outer strategy has paid for already, with their rewards, the best first."""
    await search.score(search.given)
    usable = search.usable(search.given)
    ranked = [Ranked(one, search.worth(one, aggregate)) for one in usable]
    return sorted(ranked, key=lambda one: -(one.score or 0.0))


def is_reached(target: float | None, ranked: Sequence[Ranked]) -> bool:
    """Whether the first of `ranked`, the best, has the target's reward."""
    best = ranked[0].score if ranked else None
    return target is not None and best is not None and best >= target
