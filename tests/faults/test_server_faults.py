"""Clients that go, engines that close, judges that fail, stores that are down, and overload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from engines.base import Continuation, Delta, Health, Prefix, Sampling
from engines.echo import EchoEngine
from reward_models.base import Candidate, Score
from reward_models.constant import ConstantJudge
from server.cache import ResponseCache
from server.record import LiveRuns
from server.services import Services
from stores.errors import StoreUnavailable
from stores.memory import MemoryStore
from tests.api.harness import (
    CHAT,
    HELLO,
    Exchange,
    body,
    chunks_of,
    claimed_pages,
    client_of,
    content_of,
    echo_settings,
    noisy_settings,
    serving,
)

pytestmark = pytest.mark.faults

SEARCH = {"strategy": "best_of_n", "params": {"width": 4}}
SOON: dict[str, Any] = {"stream": {"heartbeat_s": 0.01}}


class GatedEngine:
    """The real engine, but its children wait at a gate after their first delta."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.gate = asyncio.Event()
        self.at_gate = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncIterator[Delta | Continuation]:
        inner = self._engine.sample(prefix, how, n=n, seeds=seeds)
        try:
            async for item in inner:
                yield item
                self.at_gate.set()
                await self.gate.wait()
        finally:
            await inner.aclose()


def gated(app: FastAPI) -> GatedEngine:
    """Put a gate into the app's engine."""
    catalog = app.state.services.catalog
    engine = GatedEngine(catalog.models["echo"].engine)
    catalog.models["echo"] = replace(catalog.models["echo"], engine=engine)
    return engine


async def until(text: str, client: httpx.AsyncClient) -> None:
    """Return when /metrics says `text`."""
    for _ in range(2000):
        if text in (await client.get("/metrics")).text:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{text} never showed")


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("bough", [{}, SEARCH], ids=["single", "best_of_n"])
async def test_a_client_that_goes_cancels_every_branch(
    is_stream: bool, bough: dict[str, Any]
) -> None:
    async with serving(echo_settings()) as app:
        engine = gated(app)
        exchange = Exchange(app, CHAT, body(stream=is_stream, bough=bough))
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        assert await claimed_pages(app) > 0
        await exchange.leave()
        assert await claimed_pages(app) == 0
        assert engine.stats().running == 0
        async with client_of(app) as client:
            text = (await client.get("/metrics")).text
        name = bough.get("strategy", "single")
        assert f'bough_requests_total{{status="cancelled",strategy="{name}"}} 1.0' in text


async def test_what_a_cancelled_run_drew_is_counted_as_wasted() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        engine = gated(app)
        exchange = Exchange(app, CHAT, body(stream=True, bough=SEARCH))
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        await exchange.leave()
        lines = (await client.get("/metrics")).text.splitlines()
    counted = {
        name: next(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f'bough_{name}_total{{strategy="best_of_n"}}')
        )
        for name in ("prompt_tokens", "generated_tokens", "wasted_tokens", "candidates")
    }
    assert counted["prompt_tokens"] > 0
    assert counted["wasted_tokens"] == counted["generated_tokens"] > 0
    assert counted["candidates"] == 4


async def test_a_client_that_goes_while_it_waits_leaves_the_queue() -> None:
    settings = echo_settings(limits={"max_concurrent_runs": 1, "max_queued_runs": 2})
    async with serving(settings) as app, client_of(app) as client:
        engine = gated(app)
        first = Exchange(app, CHAT, body(stream=True))
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        waiting = [Exchange(app, CHAT, body(stream=is_stream)) for is_stream in (True, False)]
        await until('bough_runs{state="waiting"} 2.0', client)
        for one in waiting:
            await one.leave()
        await until('bough_runs{state="waiting"} 0.0', client)
        engine.gate.set()
        await asyncio.wait_for(first.task, 20)
        assert await claimed_pages(app) == 0


async def test_a_client_that_goes_while_it_sends_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        exchange = Exchange(app, CHAT, body(), is_whole=False)
        await exchange.leave()
        text = (await client.get("/metrics")).text
        assert 'bough_requests_total{status="cancelled",strategy="unresolved"} 1.0' in text
    assert "error" not in caplog.text


async def test_headers_and_a_comment_come_before_anything_is_decided() -> None:
    async with serving(echo_settings(**SOON)) as app:
        engine = gated(app)
        exchange = Exchange(app, CHAT, body(stream=True, bough=SEARCH))
        start = await exchange.message()
        assert (start["type"], start["status"]) == ("http.response.start", 200)
        assert (await exchange.message())["body"].startswith(b": ")
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        seen = b""
        while b": keep-alive\n\n" not in seen:  # heartbeats while the gate is shut
            seen += (await exchange.message())["body"]
        engine.gate.set()
        while b"[DONE]" not in seen:
            seen += (await exchange.message())["body"]
        await exchange.task
        assert content_of(chunks_of(seen.decode())) == HELLO


async def test_overload_is_429_with_the_time_to_come_back() -> None:
    settings = echo_settings(limits={"max_concurrent_runs": 1, "max_queued_runs": 0})
    async with serving(settings) as app, client_of(app) as client:
        engine = gated(app)
        first = Exchange(app, CHAT, body(stream=True))
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        response = await client.post(CHAT, json=body())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
        text = (await client.get("/metrics")).text
        assert 'bough_requests_total{status="overloaded",strategy="single"} 1.0' in text
        engine.gate.set()
        await asyncio.wait_for(first.task, 20)
        assert (await client.post(CHAT, json=body())).status_code == 200


async def test_a_closed_engine_is_503_and_asks_for_a_restart() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        await app.state.services.catalog.models["echo"].engine.aclose()
        response = await client.post(CHAT, json=body())
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["gone"]) == (503, ["echo"])
        live = await client.get("/health/live")
        assert (live.status_code, live.json()["dead"]) == (503, ["echo"])


async def test_an_engine_is_unready_before_anybody_asked_it() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        for path in ("/health/live", "/health/ready"):
            assert (await client.get(path)).status_code == 200
        await app.state.services.catalog.models["echo"].engine.aclose()
        for path in ("/health/live", "/health/ready"):
            assert (await client.get(path)).status_code == 503


async def test_an_upstream_that_is_away_asks_for_no_restart_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        with monkeypatch.context() as away:
            away.setattr(EchoEngine, "health", Health.AWAY)
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["gone"]) == (503, ["echo"])
            assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_an_engine_that_closes_mid_stream_ends_it_with_one_error() -> None:
    async with serving(echo_settings()) as app:
        engine = gated(app)
        exchange = Exchange(app, CHAT, body(stream=True))
        await asyncio.wait_for(engine.at_gate.wait(), 20)
        await engine.aclose()
        engine.gate.set()
        await asyncio.wait_for(exchange.task, 20)
        text = ""
        while not text.endswith("}}\n\n"):
            message = await exchange.message()
            text += message.get("body", b"").decode()
        assert chunks_of(text)[-1]["error"]["code"] == "engine_unavailable"
        assert "[DONE]" not in text
        assert await claimed_pages(app) == 0


async def test_an_unexpected_failure_tells_nothing_but_an_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        engine = gated(app)

        async def broken(prompt: Any, **_: Any) -> Any:
            raise RuntimeError("secret: /etc/passwd")

        engine.open = broken  # type: ignore[attr-defined]
        for is_stream in (False, True):
            response = await client.post(CHAT, json=body(stream=is_stream))
            assert "secret" not in response.text
            error = chunks_of(response.text)[-1]["error"] if is_stream else response.json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "internal_error")
            assert response.headers["x-request-id"]
            log_id = error["message"].rsplit(" ", 1)[1]
            assert f"internal error {log_id}" in caplog.text
        assert response.status_code == 200


class FlakyJudge(ConstantJudge):
    """Returns NaN for some candidates, or is gone."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__("constant")
        self._values = list(values)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        scores = [self._values.pop(0) for _ in batch]
        return [Score(value) for value in scores]


async def test_nan_rewards_drop_their_candidates_and_are_counted() -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        app.state.services.catalog.judges["constant"] = FlakyJudge([float("nan"), 0.5, 0.9, 0.1])
        reply = (await client.post(CHAT, json=body(seed=1, max_tokens=9, bough=SEARCH))).json()
        assert reply["usage"]["bough"]["reward_model"]["dropped"] == 1
        assert reply["bough"]["score"] == 0.9
        text = (await client.get("/metrics")).text
        assert 'bough_candidates_dropped_total{strategy="best_of_n"} 1.0' in text
        tree = (await client.get(f"/v1/runs/{reply['bough']['run_id']}/tree")).json()
        assert "failed" in [node["state"] for node in tree["nodes"]]
        assert await claimed_pages(app) == 0


async def test_a_judge_that_is_gone_is_503() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        await app.state.services.catalog.judges["constant"].aclose()
        response = await client.post(CHAT, json=body(bough=SEARCH))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "reward_model_unavailable"
        assert (await client.get("/health/ready")).json()["gone"] == ["constant"]


class DownStore(MemoryStore):
    """A store that does not answer."""

    def _check_open(self) -> None:
        raise StoreUnavailable("redis.internal:6379 refused the connection")


async def test_a_store_that_is_down_costs_no_completion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = echo_settings(cache={"responses": True})
    async with serving(settings) as app, client_of(app) as client:
        services: Services = app.state.services
        store = DownStore()
        app.state.services = replace(
            services,
            store=store,
            cache=ResponseCache(store, services.metrics, settings.cache),
            runs=LiveRuns(store, services.metrics),
        )
        for is_stream in (False, True):
            response = await client.post(CHAT, json=body(seed=1, stream=is_stream, bough=SEARCH))
            assert response.status_code == 200
            assert "error" not in response.text.replace('"errors"', "")
        await app.state.services.runs.drain()
        text = (await client.get("/metrics")).text
        for what in ("cache_get", "cache_set", "run_events"):
            assert f'bough_store_errors_total{{what="{what}"}} 2.0' in text
        assert "events of run" in caplog.text
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["store"]) == (200, "unavailable")
        gone = await client.get(f"/v1/runs/{response.headers['x-bough-run-id']}/tree")
        assert gone.status_code == 503
        assert gone.json()["error"]["code"] == "store_unavailable"
        assert "redis.internal" not in gone.text


async def test_nobody_is_let_in_while_shutting_down() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        app.state.services.admission.close()
        response = await client.post(CHAT, json=body())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
