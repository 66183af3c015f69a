"""Searches whose SGLang worker dies under them, on the protocol fake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engines.base import Health
from reward_models.base import KnowsHealth
from tests.api.harness import CHAT, Exchange, claimed_pages, client_of, serving
from tests.sglang_fake import FakeOptions, FakeServer, fake_model
from tests.sglang_search import (
    STRATEGIES,
    answer,
    is_well_again,
    killed_in_the_middle,
    request,
    settings_of,
)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model(tmp_path_factory.mktemp("fake_model"))


@pytest.fixture(scope="module")
def options(model: Path) -> FakeOptions:
    return FakeOptions(model_path=str(model), token_s=0.001, context_tokens=512)


@pytest.fixture
def server(options: FakeOptions) -> Iterator[FakeServer]:
    running = FakeServer(options)
    yield running
    running.stop()


@pytest.fixture
def judge(model: Path) -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(model_path=str(model), is_embedding=True, context_tokens=1024))
    yield running
    running.stop()


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_strategies_run_on_it(strategy: str, server: FakeServer, judge: FakeServer) -> None:
    judged_by = {"kind": "sglang", "model": judge.url, "options": {"sigmoid": True}}
    async with serving(settings_of(server.url, judged_by)) as app:
        got = await answer(app, strategy, max_tokens=24)
    assert got.choices[0].message.content
    assert got.bough["stop_reason"] == "done"
    assert server.fake.live == {}


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "beam"])
async def test_a_worker_dies_in_the_middle(
    strategy: str, server: FakeServer, options: FakeOptions
) -> None:
    async with serving(settings_of(server.url, health_s=60)) as app:
        await killed_in_the_middle(app, strategy, server.kill)
        again = FakeServer(options, server.port)
        try:
            await is_well_again(app)
        finally:
            again.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_second_step_could_not_have_is_refused_before_the_first(
    stream: bool, server: FakeServer
) -> None:
    asked = request("beam", max_tokens=24, presence_penalty=0.5, stream=stream)
    async with serving(settings_of(server.url)) as app, client_of(app) as client:
        reply = await client.post(CHAT, json=asked)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "unsupported_by_engine"
        assert "presence_penalty" in reply.json()["error"]["message"]
        whole = await client.post(CHAT, json=asked | {"bough": request("single")["bough"]})
        assert whole.status_code == 200


async def test_readiness_knows_of_a_judge_that_is_gone(
    server: FakeServer, judge: FakeServer
) -> None:
    judged_by = {"kind": "sglang", "model": judge.url, "options": {"max_retries": 0}}
    async with serving(settings_of(server.url, judged_by)) as app, client_of(app) as client:
        own = app.state.services.catalog.judges["judge"]
        assert isinstance(own, KnowsHealth)
        assert own.health is Health.READY
        judge.kill()
        await client.post(CHAT, json=request("best_of_n", max_tokens=8))
        assert own.health is Health.AWAY
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["gone"]) == (503, ["judge"])
    assert own.health is Health.DEAD


async def test_one_of_two_workers_dies(server: FakeServer, options: FakeOptions) -> None:
    other = FakeServer(options)
    try:
        async with serving(settings_of(f"{server.url},{other.url}", health_s=60)) as app:
            await is_well_again(app)
            server.kill()
            for _ in range(3):
                await is_well_again(app)
    finally:
        other.stop()


async def test_a_client_that_goes_leaves_nothing_behind(server: FakeServer) -> None:
    async with serving(settings_of(server.url)) as app, asyncio.timeout(30):
        exchange = Exchange(app, CHAT, request("best_of_n", max_tokens=200, stream=True))
        while len(server.fake.live) < 4:  # noqa: ASYNC110 - it lives in another thread
            await asyncio.sleep(0.001)
        await exchange.leave()
        assert await claimed_pages(app) == 0
        async with httpx.AsyncClient(base_url=server.url, verify=False) as client:
            idle = await client.post("/flush_cache", params={"timeout": 10})
            assert idle.status_code == 200
    streamed = {one["rid"] for one in server.fake.requests if one.get("stream")}
    assert set(server.fake.aborted) == streamed
    assert len(streamed) == 4


async def test_a_judge_that_dies_is_an_error(server: FakeServer, judge: FakeServer) -> None:
    judged_by = {"kind": "sglang", "model": judge.url, "options": {"max_retries": 0}}
    async with serving(settings_of(server.url, judged_by)) as app, client_of(app) as client:
        judge.kill()
        reply = await client.post(CHAT, json=request("best_of_n", max_tokens=8))
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "reward_model_unavailable"
        assert await claimed_pages(app) == 0
