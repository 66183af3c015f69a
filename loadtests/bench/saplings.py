"""The bundled models in this process, and word problems put to them through a search strategy."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engines.base import ChatMessage, Continuation, Engine, Sampling
from engines.embedded.engine import open_engine
from engines.errors import EngineError
from loadtests.bench.figures import BenchError
from models.registry import bundled
from models.tasks import sums
from models.tasks.base import messages_of
from reward_models.base import Candidate, RewardModel
from reward_models.errors import RewardError
from reward_models.process import open_judge
from search.budget import Limits
from search.run import Result, Run, RunRequest
from search.tree import SearchTree
from server.catalog import opened
from server.errors import ServerError
from server.settings import load

GENERATOR: Final = "sapling-sums"
JUDGE: Final = "sapling-prm"
OPTIONS: Final[Mapping[str, Any]] = {"device": "cpu", "dtype": "float32"}
IN_FLIGHT: Final = 24
MAX_TOKENS: Final = 256


@dataclass(frozen=True)
class Saplings:
    """A generator and its judge, both loaded: the bundled ones, or others in their place.

    Attributes:
        engine: The generator.
        judge: The judge; None where there is none.
        max_tokens: Of an answer.
    """

    engine: Engine
    judge: RewardModel | None
    max_tokens: int = MAX_TOKENS

    async def search(
        self,
        messages: Sequence[ChatMessage],
        strategy: str,
        params: Mapping[str, Any],
        seed: int,
        *,
        tenant: str = "",
        sampling: Mapping[str, Any] | None = None,
    ) -> tuple[Result, SearchTree]:
        """One run to its end; only an answer's length is limited."""
        how = Sampling(max_tokens=self.max_tokens, tenant=tenant)
        request = RunRequest(
            strategy=strategy,
            params=params,
            messages=tuple(messages),
            sampling=replace(how, **(sampling or {})),
            seed=seed,
            limits=Limits(),
            run_id=f"bench-{seed}",
            tenant=tenant,
        )
        run = Run(request, engine=self.engine, judge=self.judge)
        return await run.result(), run.tree

    async def ask(
        self,
        problem: sums.Problem,
        strategy: str,
        params: Mapping[str, Any],
        seed: int,
        tenant: str = "",
    ) -> Result:
        """The result of `search` alone."""
        messages = messages_of(problem)
        result, _ = await self.search(messages, strategy, params, seed, tenant=tenant)
        return result

    async def complete(
        self, messages: list[dict[str, str]], prefix: str, n: int, temperature: float
    ) -> list[str]:
        """Plain samples after an answer's beginning: `models.evaluate.Generate`."""
        prompt = self.engine.render(messages)
        assert isinstance(prompt, tuple)
        claim = await self.engine.open(prompt + self.engine.encode(prefix))
        how = Sampling(temperature=temperature, max_tokens=self.max_tokens, deltas=False)
        seeds = [seed_of(messages[-1]["content"], prefix, index) for index in range(n)]
        texts = [""] * n
        try:
            async for item in self.engine.sample(claim, how, n=n, seeds=seeds):
                if isinstance(item, Continuation):
                    texts[item.index] = item.text
                    item.prefix.release()
        finally:
            claim.release()
        return texts

    async def rewards(self, messages: list[dict[str, str]], steps: list[str]) -> list[float]:
        """The judge's value of each step: `models.evaluate.Judge`."""
        assert self.judge is not None
        candidate = Candidate(tuple(messages), "".join(steps), (), tuple(steps))
        (score,) = await self.judge.score([candidate])
        return list(score.steps)


@asynccontextmanager
async def open_saplings(
    *,
    of_generator: Mapping[str, Any] | None = None,
    max_tokens: int = MAX_TOKENS,
    **options: Any,
) -> AsyncIterator[Saplings]:
    """Load both; on leaving, check that nothing stayed claimed, and close both.

    Args:
        of_generator: Options of the generator's runtime alone.
        max_tokens: Of an answer.
        options: Of both runtimes, beside `OPTIONS`.

    Raises:
        BenchError: They are not bundled, or a claim leaked.
    """
    found = bundled()
    missing = {GENERATOR, JUDGE} - set(found)
    if missing:
        raise BenchError(f"{', '.join(sorted(missing))} not found in models/; run `make models`")
    own = {**OPTIONS, **options, **(of_generator or {})}
    engine = open_engine(GENERATOR, str(found[GENERATOR]), own)
    try:
        judge = open_judge(JUDGE, str(found[JUDGE]), {**OPTIONS, **options})
        try:
            yield Saplings(engine, judge, max_tokens)
            await _nothing_claimed(engine, judge)
        finally:
            await judge.aclose()
    finally:
        await engine.aclose()


@asynccontextmanager
async def open_configured(
    config: Path, model: str | None, judge: str | None, max_tokens: int
) -> AsyncIterator[Saplings]:
    """A model and a judge of a server's settings.

    Args:
        config: The settings' file.
        model: Which model; the first by default.
        judge: Which reward model; the model's own by default.
        max_tokens: Of an answer.

    Raises:
        BenchError: The settings cannot be read, or do not have these.
    """
    try:
        settings = load(parsed=argparse.Namespace(config=config)).settings
        async with opened(settings) as catalog:
            served, _ = catalog.find(model or next(iter(catalog.models)))
            name = judge or served.settings.reward_model
            yield Saplings(served.engine, catalog.judge(name) if name else None, max_tokens)
    except (ServerError, EngineError, RewardError) as err:
        raise BenchError(f"{config}: {err}") from err


def seed_of(*parts: object) -> int:
    """A seed from anything with a stable repr, 62 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


class Limited:
    """`Saplings.complete` and `rewards` with so many calls at a time."""

    def __init__(self, saplings: Saplings, at_a_time: int = IN_FLIGHT) -> None:
        self._saplings = saplings
        self._gate = asyncio.Semaphore(at_a_time)

    async def complete(
        self, messages: list[dict[str, str]], prefix: str, n: int, temperature: float
    ) -> list[str]:
        """See `Saplings.complete`."""
        async with self._gate:
            return await self._saplings.complete(messages, prefix, n, temperature)

    async def rewards(self, messages: list[dict[str, str]], steps: list[str]) -> list[float]:
        """See `Saplings.rewards`."""
        async with self._gate:
            return await self._saplings.rewards(messages, steps)


async def _nothing_claimed(engine: Engine, judge: RewardModel) -> None:
    end = time.monotonic() + 5
    claimed: Sequence[int] = (1,)
    while any(claimed) and time.monotonic() < end:
        claimed = (engine.stats().pages_claimed, judge.stats().pages_claimed)
        await asyncio.sleep(0.01)
    if any(claimed):
        raise BenchError(f"pages still claimed by generator and judge: {claimed}")
