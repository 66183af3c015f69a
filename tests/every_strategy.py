"""Every registered strategy on a real engine with a bundled model: what must hold there.

The engine and the judge are metered, so that what a run says it spent can be compared with what
was drawn and judged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from engines.base import (
    Capability,
    Continuation,
    Delta,
    Engine,
    Prefix,
    Prompt,
    Sampling,
    TokenIds,
)
from engines.errors import UnsupportedByEngine
from reward_models.base import (
    Candidate,
    Claim,
    MultifurcationRewardModel,
    RewardModel,
    RewardRow,
    Score,
)
from search.answers import extract_answer
from search.errors import MissingRewardModel
from search.growth import closing
from search.plugins import load
from search.registry import strategy_class
from search.run import Piece, Result, Run, RunRequest

WIDTH = 3
PARAMS: dict[str, dict[str, Any]] = {
    "deep_confidence": {"warmup": 2},
    "gen_select": {"max_reply_tokens": 16},
    "mcts": {"children": 2},
}
QUESTION = "Ann has 3 red beads and 4 blue beads. Ben gives Ann 5 beads. How many beads?"

UNDER_ANY_JUDGE = sorted(
    name
    for name in load("bough.strategies")
    if not getattr(strategy_class(name), "needs_next_rewards", False)
    and not strategy_class(name).requires & {Capability.DENOISE, Capability.DRAFTER}
)
"""Strategies of models that go token by token, that need no reward of every next token and no
drafter: whatever generates and whatever judges carries them."""

OF_TOKENS = [
    name
    for name in load("bough.strategies")
    if Capability.DENOISE not in strategy_class(name).requires
]
"""Strategies of models that go token by token."""

every_strategy = pytest.mark.parametrize("strategy", OF_TOKENS)
"""For tests that take the name of such a strategy."""


@dataclass
class MeteredEngine:
    """Counts the tokens of every child that the engine gives out, finished or not."""

    engine: Engine
    drawn: dict[tuple[int, int], int] = field(default_factory=dict)
    num_calls: int = 0
    num_opened: int = 0
    num_appended: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        self.num_opened += 1
        return await self.engine.open(prompt, tenant=tenant, priority=priority)

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        self.num_appended += len(pairs)  # each is a chosen token, or an end that adds none
        return await self.engine.extend(pairs)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        self.num_calls += 1
        self.drawn |= {(self.num_calls, child): 0 for child in range(n)}
        return self._metered(self.engine.sample(prefix, how, n=n, seeds=seeds), self.num_calls)

    async def _metered(
        self, stream: AsyncIterator[Delta | Continuation], call: int
    ) -> AsyncGenerator[Delta | Continuation]:
        async with closing(stream):
            async for item in stream:
                if isinstance(item, Continuation):
                    self.drawn[call, item.index] = item.num_tokens + item.num_overrun
                else:
                    self.drawn[call, item.index] += item.num_tokens
                yield item


@dataclass
class MeteredJudge:
    """Counts what it is asked."""

    judge: RewardModel
    num_judged: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        self.num_judged += len(batch)
        return await self.judge.score(batch)


class MeteredRows(MeteredJudge):
    """The same, of one that values next tokens."""

    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        assert isinstance(self.judge, MultifurcationRewardModel)
        self.num_judged += len(claims)
        return await self.judge.next_rewards(claims)


async def check_strategy(strategy: str, engine: Engine, judge: RewardModel) -> None:
    """It answers, streamed; gives every claim back; and says truly what it spent.

    Where the engine cannot carry it, or the judge cannot, it is refused before anything is drawn.
    """
    metered = MeteredEngine(engine)
    values_tokens = isinstance(judge, MultifurcationRewardModel)
    asked = (MeteredRows if values_tokens else MeteredJudge)(judge)
    kind = strategy_class(strategy)
    has_width = "width" in kind.Params.model_fields
    request = RunRequest(
        strategy=strategy,
        params={**({"width": WIDTH} if has_width else {}), **PARAMS.get(strategy, {})},
        messages=({"role": "user", "content": QUESTION},),
        sampling=Sampling(max_tokens=160),
        seed=3,
        run_id="real",
    )
    if not can_carry(engine, kind.requires):
        with pytest.raises(UnsupportedByEngine):
            Run(request, engine=metered, judge=asked)
        return
    if getattr(kind, "needs_next_rewards", False) and not values_tokens:
        with pytest.raises(MissingRewardModel):
            Run(request, engine=metered, judge=asked)
        return
    run = Run(request, engine=metered, judge=asked)
    items = [item async for item in run.stream()]
    result = items[-1]
    assert isinstance(result, Result)
    answer = result.answers[0]
    assert extract_answer(answer.content) is not None
    assert answer.finish_reason == "stop"
    assert result.stop_reason == "done"
    assert "".join(item.text for item in items if isinstance(item, Piece)) == answer.content
    drawn = sum(metered.drawn.values()) + metered.num_appended
    assert result.spent.generated_tokens == drawn >= answer.num_tokens
    # Side questions open a prompt of their own, and are no candidates.
    if metered.drawn:
        assert len(metered.drawn) - result.spent.candidates == metered.num_opened - 1
    assert result.spent.reward_calls == asked.num_judged
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_claimed) == (0, 0, 0)
    assert judge.stats().pages_claimed == 0


def can_carry(engine: Engine, wanted: frozenset[Capability]) -> bool:
    """Whether it has them; whoever continues tokens continues text."""
    has = set(engine.info.capabilities)
    return wanted <= (has | {Capability.CONTINUE_TEXT} if Capability.TOKENS in has else has)
