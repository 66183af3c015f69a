"""The embedded engine when callers leave, forwards fail, pages are short or it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from engines.base import Continuation, Delta, Health, Prefix, Sampling, TokenIds
from engines.embedded.engine import EmbeddedEngine
from engines.embedded.jobs import ReadRequest
from engines.errors import (
    CapacityExceeded,
    ContextLengthExceeded,
    EngineClosed,
    EngineError,
    PromptError,
    UnsupportedByEngine,
)
from tests.contract.tiny_llama import write_tiny_llama
from tests.embedded_models import children, open_tiny, require_idle

pytestmark = pytest.mark.faults

PROMPT = tuple(range(20, 45))
LONG = Sampling(temperature=1.0, max_tokens=60, ban_ids=frozenset({0}))
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def engine(tiny: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = open_tiny(tiny)
    yield engine
    await engine.aclose()


@pytest.fixture
async def expected(tiny: Path) -> list[TokenIds]:
    """What three undisturbed children say."""
    engine = open_tiny(tiny)
    done = await children(engine, PROMPT, LONG, SEEDS)
    await engine.aclose()
    return [child.token_ids for child in done]


def stream(
    engine: EmbeddedEngine, prefix: Prefix, how: Sampling = LONG
) -> AsyncGenerator[Delta | Continuation]:
    return cast(
        "AsyncGenerator[Delta | Continuation]",
        engine.sample(prefix, how, n=len(SEEDS), seeds=SEEDS),
    )


async def require_serving(engine: EmbeddedEngine, expected: list[TokenIds]) -> None:
    """Nothing is claimed, the books are right, and it answers as ever."""
    require_idle(engine)
    done = await children(engine, PROMPT, LONG, SEEDS)
    assert [child.token_ids for child in done] == expected
    require_idle(engine)


def outcome_after(
    steps: int, work: Coroutine[Any, Any, Any], *, times: int = 1
) -> Coroutine[Any, Any, bool]:
    """Cancel `work` after so many turns of the event loop; whether that came in time."""

    async def run() -> bool:
        task = asyncio.ensure_future(work)
        for _ in range(steps):
            await asyncio.sleep(0)
        was_running = not task.done()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        return was_running and task.cancelled()

    return run()


@pytest.mark.parametrize("deltas", [True, False])
@pytest.mark.parametrize("items", [0, 1, 2, 3, 10, 60])
async def test_closing_after_any_number_of_items(
    engine: EmbeddedEngine, expected: list[TokenIds], items: int, deltas: bool
) -> None:
    prefix = await engine.open(PROMPT)
    how = Sampling(max_tokens=60, ban_ids=frozenset({0}), deltas=deltas)
    children = stream(engine, prefix, how)
    seen = 0
    if items:
        async for item in children:
            if isinstance(item, Continuation):
                item.prefix.release()
            seen += 1
            if seen >= items:
                break
    await children.aclose()
    prefix.release()
    await require_serving(engine, expected)


async def test_closing_when_several_children_ended_in_one_step(
    engine: EmbeddedEngine, expected: list[TokenIds]
) -> None:
    """Children of equal length end together; those nobody took are given back too."""
    await children(engine, PROMPT, LONG, SEEDS)  # warm, so that none waits for another's prompt
    prefix = await engine.open(PROMPT)
    items = stream(engine, prefix, Sampling(max_tokens=4, ban_ids=frozenset({0}), deltas=False))
    first = await anext(items)
    assert isinstance(first, Continuation)
    first.prefix.release()
    await items.aclose()
    prefix.release()
    await require_serving(engine, expected)


async def exhaust(engine: EmbeddedEngine, prefix: Prefix, how: Sampling = LONG) -> None:
    items = stream(engine, prefix, how)
    try:
        async for item in items:
            if isinstance(item, Continuation):
                item.prefix.release()
    finally:
        await items.aclose()


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_sample_at_every_await(
    engine: EmbeddedEngine, expected: list[TokenIds], times: int
) -> None:
    """Once, and once more while it is still cleaning up."""
    prefix = await engine.open(PROMPT)
    how = Sampling(max_tokens=12, ban_ids=frozenset({0}))
    in_time = 0
    for steps in range(40):
        in_time += await outcome_after(steps, exhaust(engine, prefix, how), times=times)
    assert in_time
    prefix.release()
    await settled(engine)
    await require_serving(engine, expected)


async def settled(engine: EmbeddedEngine) -> None:
    """When this returns the worker has let go of what was cancelled twice."""
    prefix = await engine.open((9,))
    await engine.score(prefix, (9,))
    prefix.release()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("call", ["score", "next_logprobs", "embed", "read"])
async def test_cancelling_reads_at_every_await(
    engine: EmbeddedEngine, expected: list[TokenIds], call: str, times: int
) -> None:
    prefix = await engine.open(PROMPT)
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "score": lambda: engine.score(prefix, PROMPT),
        "next_logprobs": lambda: engine.next_logprobs([prefix, prefix], top_k=3),
        "embed": lambda: engine.embed([prefix] * 4, [1, 2, 3, 4]),
        "read": lambda: engine._runtime.read(
            [ReadRequest("", PROMPT[: 5 + i], 0, lambda hidden: len(hidden)) for i in range(6)]
        ),
    }
    in_time = 0
    for steps in range(12):
        in_time += await outcome_after(steps, calls[call](), times=times)
    assert in_time
    prefix.release()
    await settled(engine)
    await require_serving(engine, expected)


async def test_releasing_everything_in_mid_sample_changes_nothing(
    engine: EmbeddedEngine, expected: list[TokenIds]
) -> None:
    prefix = await engine.open(PROMPT)
    items = stream(engine, prefix)
    first = await anext(items)
    assert isinstance(first, Delta)
    prefix.release()
    got = {}
    async for item in items:
        if isinstance(item, Continuation):
            got[item.index] = item.token_ids
            item.prefix.release()
    assert [got[i] for i in range(3)] == expected
    await require_serving(engine, expected)


class Broken(RuntimeError):
    """What a failing device raises."""


def break_forward(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, *, after: int
) -> dict[str, int]:
    """The decoder's forward raises once, in its call number `after`."""
    calls = {"made": 0, "failed": 0}
    decoder = engine._runtime.decoder
    forward = decoder.forward

    def broken(*args: Any) -> torch.Tensor:
        calls["made"] += 1
        if calls["made"] == after:
            calls["failed"] += 1
            raise Broken("out of everything")
        return forward(*args)

    monkeypatch.setattr(decoder, "forward", broken)
    return calls


@pytest.mark.parametrize("after", [1, 2, 3, 17])
async def test_a_failed_forward_reaches_everyone_who_runs_and_nobody_else(
    engine: EmbeddedEngine,
    expected: list[TokenIds],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    after: int,
) -> None:
    calls = break_forward(engine, monkeypatch, after=after)
    prefix = await engine.open(PROMPT)
    other = await engine.open(PROMPT[:7])
    results = await asyncio.gather(
        exhaust(engine, prefix),
        exhaust(engine, other),
        engine.score(prefix, PROMPT * 3),
        return_exceptions=True,
    )
    assert calls["failed"] == 1
    failed = [result for result in results if isinstance(result, BaseException)]
    assert failed
    assert all(type(error) is EngineError for error in failed)
    assert "out of everything" in str(failed[0])
    assert "a step of the engine failed" in caplog.text
    prefix.release()
    other.release()
    await require_serving(engine, expected)


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("what", ["copy", "logits", "plan"])
async def test_other_parts_may_fail_too(
    engine: EmbeddedEngine,
    expected: list[TokenIds],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    is_warm: bool,
) -> None:
    """Warm, pages of the cache are copied at the start; cold, the prompt's last page at its end."""
    if is_warm:
        await children(engine, PROMPT, LONG, SEEDS)
    runtime = engine._runtime
    owner = {"copy": runtime.pool, "logits": runtime.decoder, "plan": runtime.worker._planner}[what]

    def broken(*args: Any) -> None:
        raise Broken(what)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, broken)
        prefix = await engine.open(PROMPT)
        with pytest.raises(EngineError, match=what):
            await exhaust(engine, prefix)
        prefix.release()
    assert "a step of the engine failed" in caplog.text
    await require_serving(engine, expected)


async def test_broken_books_end_everything_and_nobody_waits(
    engine: EmbeddedEngine,
    tiny: Path,
    expected: list[TokenIds],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot even be cleaned up ends this engine, and no other on the same thread."""

    def broken(*args: Any) -> None:
        raise Broken("the books")

    other = open_tiny(tiny)
    prefix = await engine.open(PROMPT)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runtime.worker._planner, "plan", broken)
        patch.setattr(engine._runtime.ledger, "give", broken)
        with pytest.raises(EngineClosed, match="the books"):
            await exhaust(engine, prefix)
    assert engine.health is Health.DEAD
    assert "cannot go on" in caplog.text
    with pytest.raises(EngineClosed):
        await engine.score(prefix, PROMPT)
    done = await children(other, PROMPT, LONG, SEEDS)
    assert [child.token_ids for child in done] == expected
    await other.aclose()


async def test_closing_the_engine_ends_what_runs(tiny: Path) -> None:
    engine = open_tiny(tiny)
    prefix = await engine.open(PROMPT)
    runs = [asyncio.ensure_future(exhaust(engine, prefix)) for _ in range(3)]
    reads = asyncio.ensure_future(engine.score(prefix, PROMPT * 4))
    await asyncio.sleep(0)
    await engine.aclose()
    results = await asyncio.gather(*runs, reads, return_exceptions=True)
    assert all(isinstance(result, EngineClosed) for result in results[:3]), results
    require_idle(engine)
    await engine.aclose()
    prefix.release()
    for call in (
        engine.open(PROMPT),
        engine.score(prefix, PROMPT),
        engine.extend([(prefix, PROMPT)]),
        engine.embed([prefix], [1]),
        exhaust(engine, prefix),
    ):
        with pytest.raises(EngineClosed):
            await call
    require_idle(engine)


BAD_IDS = (5, 10**6)


async def test_a_bad_request_hurts_nobody_else(
    engine: EmbeddedEngine, expected: list[TokenIds]
) -> None:
    """Ids outside the vocabulary and sequences beyond the context are refused one by one."""
    prefix = await engine.open(PROMPT)
    others = asyncio.ensure_future(children(engine, PROMPT, LONG, SEEDS))
    too_long = (7,) * engine.info.context_tokens
    with pytest.raises(PromptError):
        await engine.open(BAD_IDS)
    with pytest.raises(PromptError):
        await engine.open(())
    with pytest.raises(ContextLengthExceeded):
        await engine.open(too_long)
    with pytest.raises(PromptError):
        await engine.open(list(PROMPT))  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        await engine.score(prefix, BAD_IDS)
    with pytest.raises(PromptError):
        await engine.score(prefix, (5, -1))
    with pytest.raises(ContextLengthExceeded):
        await engine.score(prefix, too_long)
    with pytest.raises(PromptError):
        await engine.extend([(prefix, BAD_IDS)])
    with pytest.raises(PromptError):
        await engine.next_logprobs([prefix], ids=BAD_IDS)
    with pytest.raises(ValueError, match="exactly one"):
        await engine.next_logprobs([prefix])
    (longer,) = await engine.extend([(prefix, too_long)])
    with pytest.raises(ContextLengthExceeded):
        await engine.next_logprobs([longer], top_k=1)
    with pytest.raises(ContextLengthExceeded):
        await engine.embed([longer], [1])
    for how in (Sampling(logit_bias={10**6: 1.0}), Sampling(ban_ids=frozenset({-1}))):
        with pytest.raises(UnsupportedByEngine, match="not in 0"):
            await exhaust(engine, prefix, how)
    everything = frozenset(range(engine.info.vocab_size))
    with pytest.raises(UnsupportedByEngine, match="all"):
        await exhaust(engine, prefix, Sampling(ban_ids=everything))
    with pytest.raises(TypeError, match="prefix of this engine"):
        await engine.score(cast("Prefix", object()), PROMPT)
    # A stop id that no token has can never stop anything, which is no reason to refuse it.
    how = Sampling(max_tokens=4, min_tokens=2, stop_token_ids=frozenset({10**6, -3}))
    await exhaust(engine, prefix, how)
    assert [child.token_ids for child in await others] == expected
    for claim in (prefix, longer):
        claim.release()
    with pytest.raises(ValueError, match="released"):
        await engine.score(prefix, PROMPT)
    await require_serving(engine, expected)


async def test_a_prompt_that_the_pool_could_never_hold(tiny: Path) -> None:
    engine = open_tiny(tiny, kv_tokens=64, page_tokens=8)
    assert engine.info.context_tokens == 48
    with pytest.raises(CapacityExceeded, match="kv_tokens"):
        await engine.open((7,) * 48)
    await engine.aclose()


async def test_many_requests_through_a_tiny_pool(tiny: Path) -> None:
    """Idle claims, prompts that fill the pool and forty callers: all end, and end right."""
    roomy = open_tiny(tiny, kv_tokens=16384)
    tight = open_tiny(tiny, kv_tokens=96, page_tokens=4, chunk_tokens=16, ahead_tokens=16)
    how = Sampling(max_tokens=20, ban_ids=frozenset({0}), deltas=False)
    prompts = [tuple(range(10 + i % 7, 30 + i % 7 + i)) for i in range(40)]
    idle = [await tight.open(prompt) for prompt in prompts]
    right = await asyncio.gather(*(children(roomy, p, how, SEEDS) for p in prompts))
    got = await asyncio.gather(*(children(tight, p, how, SEEDS) for p in prompts))
    same = [
        a.token_ids == b.token_ids
        for many, few in zip(right, got, strict=True)
        for a, b in zip(many, few, strict=True)
    ]
    assert all(same), f"{same.count(False)} of {len(same)} differ"
    tight.check()
    assert tight.stats().pages_claimed < 24
    for prefix in idle:
        prefix.release()
    require_idle(tight)
    for engine in (roomy, tight):
        await engine.aclose()


async def test_idle_claims_are_reclaimed_when_nothing_else_helps(tiny: Path) -> None:
    """Runs that all hold claims and all want more cannot block each other."""
    engine = open_tiny(tiny, kv_tokens=80, page_tokens=4)
    how = Sampling(max_tokens=10, ban_ids=frozenset({0}), deltas=False)
    held: list[Prefix] = []
    for i in range(8):
        prefix = await engine.open(tuple(range(10 + 20 * i, 30 + 20 * i)))
        async for item in engine.sample(prefix, how):
            if isinstance(item, Continuation):
                held.append(item.prefix)
        held.append(prefix)
    assert engine.stats().pages_claimed > 0
    logps = await engine.score(held[0], PROMPT)
    fresh = open_tiny(tiny)
    again = await fresh.score(await fresh.open(held[0].token_ids), PROMPT)
    assert logps == pytest.approx(again, abs=1e-4)
    for prefix in held:
        prefix.release()
        prefix.release()
    require_idle(engine)
    await engine.aclose()
    await fresh.aclose()
