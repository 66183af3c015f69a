"""Short ways to run a search on the toy engine."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from engines.base import Capability, Sampling
from engines.echo import EchoEngine
from reward_models.base import RewardModel
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.budget import Limits
from search.plugins import load
from search.run import Piece, Result, Run, RunRequest
from search.search import Search
from tests.toy_engine import MESSAGES, ToyJudge, one_of

LETTERS = one_of({"abc": 0.5, "abd": 0.25, "xyz": 0.25})
Body = Callable[[Search], Awaitable[Outcome]]


def request(
    strategy: str,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 7,
    max_tokens: int | None = 40,
    answers: int = 1,
    sampling: Sampling | None = None,
    **limits: int,
) -> RunRequest:
    return RunRequest(
        strategy=strategy,
        params=params or {},
        messages=MESSAGES,
        sampling=sampling or Sampling(max_tokens=max_tokens),
        seed=seed,
        limits=Limits(**limits),
        run_id="test",
        answers=answers,
    )


async def result_of(
    engine: EchoEngine,
    strategy: str,
    params: Mapping[str, Any] | None = None,
    *,
    judge: RewardModel | None = None,
    **more: Any,
) -> Result:
    result = await Run(request(strategy, params, **more), engine=engine, judge=judge).result()
    assert not engine.claims
    return result


async def pieces_of(run: Run) -> tuple[list[Piece], Result]:
    items = [item async for item in run.stream()]
    result = items.pop()
    assert isinstance(result, Result)
    return [item for item in items if isinstance(item, Piece)], result


class NoParams(Params):
    """None."""


def register(monkeypatch: pytest.MonkeyPatch, **bodies: Body) -> None:
    """Make coroutines available as strategies beside the built-in ones."""
    made = {name: strategy_of(name, body) for name, body in bodies.items()}
    every = {**load("bough.strategies"), **made}
    monkeypatch.setattr("search.registry.load", lambda group: every)


def strategy_of(title: str, body: Body, needs: frozenset[Capability] = frozenset()) -> Any:
    @dataclass(frozen=True)
    class Made:
        """A strategy made for a test."""

        params: NoParams
        name: ClassVar[str] = title
        Params: ClassVar[type[NoParams]] = NoParams
        requires: ClassVar[frozenset[Capability]] = needs
        needs_judge: ClassVar[bool] = False

        async def run(self, search: Search) -> Outcome:
            return await body(search)

    return Made


@dataclass
class TryOut:
    """Runs a coroutine as a strategy."""

    monkeypatch: pytest.MonkeyPatch

    def run(
        self, body: Body, engine: EchoEngine, judge: ToyJudge | None = None, **more: object
    ) -> Run:
        register(self.monkeypatch, made=body)
        return Run(request("made", **more), engine=engine, judge=judge)  # type: ignore[arg-type]

    async def __call__(
        self, body: Body, engine: EchoEngine, judge: ToyJudge | None = None, **more: object
    ) -> Result:
        result = await self.run(body, engine, judge, **more).result()
        assert not engine.claims
        assert judge is None or not judge.claims
        return result


def first(search: Search, branches: Sequence[Branch]) -> Outcome:
    return search.outcome([Ranked(one) for one in branches])
