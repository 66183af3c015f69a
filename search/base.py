"""What a strategy is: immutable parameters, one coroutine, an outcome.

A strategy reads like its paper's pseudocode. Batching, claims, budget, streaming and cancelling
live in `Search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from engines.base import Capability
from search.branch import Branch

if TYPE_CHECKING:
    from search.search import Search

StopReason: TypeAlias = Literal["done", "budget", "deadline", "cancelled"]
"""Why a run ended; everything but "done" cut it short."""


class Params(BaseModel):
    """Base of every strategy's parameters: no unknown names, no coercion, no change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


P_co = TypeVar("P_co", bound=Params, covariant=True)


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


class Strategy(Protocol[P_co]):
    """A way to spend compute on one request. Built as `Strategy(params)`; holds no other state.

    Attributes:
        name: As in the request, the metrics and the file name.
        Params: Its parameters; their JSON schema is on the wire.
        requires: What the engine must be able to do.
    """

    name: ClassVar[str]
    Params: ClassVar[type[BaseModel]]
    requires: ClassVar[frozenset[Capability]]

    @property
    def params(self) -> P_co:
        """The parameters of this request."""

    @property
    def needs_judge(self) -> bool:
        """Whether it cannot run without a reward model, with these parameters."""

    async def run(self, search: Search) -> Outcome:
        """Search. Out of budget, `expand` returns fewer children, and at last none."""
