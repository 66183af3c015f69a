"""An engine with too little of everything: four places and fourteen blocks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import Finish, Sampling
from engines.conformance import CHECKS, Subject, run_check
from engines.errors import EngineOverloaded
from engines.vllm_async import open_engine
from engines.vllm_engine import VllmEngine
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED, until
from tests.real_vllm.test_conformance import CLOSING
from tests.real_vllm.test_sampling import children

pytestmark = SHARED

_QUEUE = 12  # requests that vLLM takes at once
_TOKEN_BYTES = 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, head size, float32


async def test_what_does_not_fit_waits_and_a_closed_engine_says_so(tiny_model: Path) -> None:
    options = {
        **SMALL,
        "kv_cache_memory_bytes": 14 * 32 * _TOKEN_BYTES,
        "max_num_seqs": 4,
        "max_num_queued_reqs": _QUEUE,
    }
    engine = open_engine("tiny", str(tiny_model), options)
    try:
        await preempted_branches_finish(engine)
        await higher_priorities_go_first(engine)
        await a_full_queue_is_an_overload(engine)
    finally:
        closing = [check for check in CHECKS if check.name in CLOSING]
        for check in closing[:1]:  # it closes the engine
            await run_check(check, Subject(lambda: engine))


async def preempted_branches_finish(engine: VllmEngine) -> None:
    """Four branches of 190 tokens need 24 blocks."""
    how = Sampling(max_tokens=170, ban_ids=engine.info.eos_ids, deltas=False)
    alone = []
    for seed in range(4):
        root = await engine.open(tuple(range(seed, seed + 20)))
        alone += await children(engine, root, how, (seed,))
    assert engine.num_preempted == 0
    roots = [await engine.open(tuple(range(seed, seed + 20))) for seed in range(4)]
    crowd = await asyncio.gather(
        *(children(engine, root, how, (seed,)) for seed, root in enumerate(roots))
    )
    done = [child for [child] in crowd]
    assert engine.num_preempted > 0
    assert {child.finish for child in done} == {Finish.LENGTH}
    assert [child.token_ids for child in done] == [child.token_ids for child in alone]
    assert engine.stats().pages_claimed == 0


async def a_full_queue_is_an_overload(engine: VllmEngine) -> None:
    """vLLM turns the last child down; its siblings go with it, and the engine is well."""
    how = Sampling(max_tokens=30, ban_ids=engine.info.eos_ids, deltas=False)
    root = await engine.open(tuple(range(10)))
    with pytest.raises(EngineOverloaded) as refused:
        await children(engine, root, how, range(_QUEUE + 1))
    assert refused.value.retry_after_s >= 1
    await until(lambda: engine.stats().running == 0)
    assert len(await children(engine, root, how, range(_QUEUE))) == _QUEUE


async def higher_priorities_go_first(engine: VllmEngine) -> None:
    """While four places are taken, eight wait; they are let in by priority, not by order."""
    banned = engine.info.eos_ids
    long = Sampling(max_tokens=100, ban_ids=banned)
    filler = await engine.open(tuple(range(20)), priority=100)
    begun = engine.sample(filler, long, n=4, seeds=range(4))
    first = await anext(begun)
    finished: list[int] = []

    async def one(priority: int) -> None:
        root = await engine.open(tuple(range(30, 40)), priority=priority)
        await children(engine, root, Sampling(max_tokens=30, ban_ids=banned, deltas=False))
        finished.append(priority)

    queued = [asyncio.create_task(one(priority)) for priority in (1, 5, 3, 7, 2, 8, 4, 6)]
    async for _ in begun:
        pass
    await asyncio.gather(*queued)
    assert first is not None
    assert set(finished[:4]) == {8, 7, 6, 5}
