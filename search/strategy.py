"""What a strategy is: immutable parameters and one coroutine.

A strategy reads like its paper's pseudocode. Batching, claims, budget, streaming and cancelling
live in `Search`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar

from pydantic import BaseModel

from engines.base import Capability
from search.base import Outcome, Params
from search.search import Search

P_co = TypeVar("P_co", bound=Params, covariant=True)


class Strategy(Protocol[P_co]):
    """A way to spend compute on one request. Built as `Strategy(params)`; holds no other state.

    One with a class variable `needs_next_rewards` that is true is refused without a judge that has
    `next_rewards` (`reward_models.base.MultifurcationRewardModel`) for the engine's own vocabulary.
    One with a method `check(engine, sampling)` may refuse a request there, before any work. One
    whose class variable `keeps_trees` is true has answers that depend on earlier requests.
    A class variable `judge_params` names the parameters that are ids of further reward models; they
    are asked by `Search.score_by`.

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
