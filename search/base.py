"""What strategies are given and what they give: parameters, ranked candidates, an outcome.

The strategy itself is `search.strategy.Strategy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from search.branch import Branch

StopReason: TypeAlias = Literal["done", "budget", "deadline", "cancelled"]
"""Why a run ended; everything but "done" cut it short."""


class Params(BaseModel):
    """Base of every strategy's parameters: no unknown names, no coercion, no change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Ranked:
    """A candidate and the number that the strategy ranked it by; None where nothing judged it."""

    branch: Branch
    score: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a strategy ends with.

    Attributes:
        chosen: The answer; equal to the first of `candidates`.
        candidates: Everything that may be shown, best first.
        stop_reason: "done", or what cut the search short.
    """

    chosen: Branch
    candidates: tuple[Ranked, ...]
    stop_reason: StopReason = "done"
