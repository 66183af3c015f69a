"""Strategies through the whole app on a real SGLang worker, and that worker killed under them."""

from __future__ import annotations

import asyncio

import pytest

from engines.base import Continuation, Prefix, Sampling
from engines.embedded.engine import open_engine as open_embedded
from engines.sglang_http import open_engine
from tests.api.harness import serving
from tests.real_sglang.rig import ROOT, RealServer
from tests.sglang_search import (
    MESSAGES,
    STRATEGIES,
    answer,
    is_well_again,
    killed_in_the_middle,
    settings_of,
)

pytestmark = pytest.mark.sglang

SAPLING = ROOT / "models" / "sapling_sums"
JUDGE = {"kind": "process", "model": str(ROOT / "models" / "sapling_prm")}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_strategies_answer(strategy: str, sapling: RealServer) -> None:
    async with serving(settings_of(sapling.url, JUDGE)) as app:
        got = await answer(app, strategy, max_tokens=160)
    assert "The answer is" in got.choices[0].message.content
    assert got.bough["stop_reason"] == "done"


async def test_it_answers_as_the_embedded_engine_does(sapling: RealServer) -> None:
    """The same weights, greedily: the same tokens and the same logps."""
    how = Sampling(temperature=0.0, max_tokens=120)
    ends = []
    ours = open_engine("real", sapling.url, {})
    embedded = open_embedded("here", str(SAPLING), {"device": "cpu", "dtype": "float32"})
    for engine in (ours, embedded):
        prefix = await engine.open(engine.render(MESSAGES))
        items = [item async for item in engine.sample(prefix, how)]
        ends.append(items[-1])
        prefix.release()
        items[-1].prefix.release()  # type: ignore[union-attr]
        await engine.aclose()
    assert ends[0].token_ids == ends[1].token_ids
    assert max(abs(a - b) for a, b in zip(ends[0].logps, ends[1].logps, strict=True)) < 1e-4


async def test_branches_compute_hardly_more_than_their_prompt(sapling: RealServer) -> None:
    """Sixteen branches of one prompt, then three rounds of steps, each branch going on alone."""
    engine = open_engine("real", sapling.url, {})
    how = Sampling(temperature=0.8, max_step_tokens=8)

    async def grown(prefix: Prefix, n: int) -> list[Continuation]:
        items = [item async for item in engine.sample(prefix, how, n=n, seeds=range(n))]
        return [item for item in items if isinstance(item, Continuation)]

    try:
        prompt = await engine.open(tuple(range(20, 532)))
        branches = await grown(prompt, 16)
        num_requests = 16
        for _ in range(3):
            open_ones = [one.prefix for one in branches if one.finish.is_open]
            num_requests += len(open_ones)
            rounds = await asyncio.gather(*(grown(prefix, 1) for prefix in open_ones))
            branches = [one for done in rounds for one in done]
        stats = engine.stats()
        # the last token drawn has no KV yet, so each request computes one token of its prompt
        assert stats.tokens_looked_up - stats.tokens_hit <= 512 + num_requests
        assert num_requests > 40
    finally:
        await engine.aclose()


@pytest.mark.faults
async def test_a_worker_is_killed_in_the_middle(sapling: RealServer) -> None:
    async with serving(settings_of(sapling.url, JUDGE, health_s=60)) as app:
        try:
            await killed_in_the_middle(app, "beam", sapling.kill)
        finally:
            sapling.start()
            sapling.wait_ready()
        await is_well_again(app)
