"""Searches on an SGLang worker through the whole app; the same on the fake and on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from openai import AsyncOpenAI

from server.services import Services
from server.settings import Settings
from tests.api.harness import CHAT, Exchange, claimed_pages, client_of
from tests.every_strategy import UNDER_ANY_JUDGE

STRATEGIES: dict[str, dict[str, Any]] = {
    name: {} if name == "single" else {"width": 4} for name in UNDER_ANY_JUDGE
}
STRATEGIES["annealed"]["decay_tokens"] = 10.0  # cold in time for an answer of some thirty tokens
QUESTION = "Ann has 3 red beads and 4 blue beads. Ben gives Ann 5 beads. How many beads?"
MESSAGES = [{"role": "user", "content": QUESTION}]


def settings_of(url: str, judge: dict[str, Any] | None = None, **options: Any) -> Settings:
    """One model behind SGLang, and a judge."""
    engine = {"kind": "sglang", "model": url, "options": {"max_step_tokens": 24, **options}}
    return Settings(
        models={"m": {"engine": engine, "reward_model": "judge"}},
        reward_models={"judge": judge or {"kind": "verifier"}},
    )


def request(strategy: str, **more: Any) -> dict[str, Any]:
    searched = {"strategy": strategy, "params": STRATEGIES[strategy], "cache": False}
    return {"model": "m", "messages": MESSAGES, "bough": searched, **more}


async def answer(app: FastAPI, strategy: str, *, max_tokens: int = 48) -> Any:
    """One completion by OpenAI's own client, and a stream that must spell some answer too."""
    async with client_of(app) as client:
        sdk = AsyncOpenAI(
            api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
        )
        wanted = request(strategy)["bough"]
        got = await sdk.chat.completions.create(
            model="m",
            messages=MESSAGES,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            extra_body={"bough": wanted},
        )
        stream = await sdk.chat.completions.create(
            model="m",
            messages=MESSAGES,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            stream=True,
            extra_body={"bough": wanted},
        )
        pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        assert "".join(pieces)
    assert await claimed_pages(app) == 0
    return got


SOON_S = 20.0
"""A client still waiting so long after its worker died hangs; it takes some milliseconds."""


async def killed_in_the_middle(app: FastAPI, strategy: str, kill: Callable[[], None]) -> None:
    """End the worker while a search runs.

    The client soon gets an error or what there is, nothing stays claimed, and readiness is red.
    """
    services: Services = app.state.services
    exchange = Exchange(app, CHAT, request(strategy, max_tokens=160))
    async with asyncio.timeout(60):
        while services.catalog.stats()["m"].running == 0:  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.001)
    await asyncio.to_thread(kill)
    async with asyncio.timeout(SOON_S):
        head = await exchange.message()
        await exchange.task
    assert head["status"] in (200, 503)
    assert await claimed_pages(app) == 0
    assert services.catalog.stats()["m"].running == 0
    async with client_of(app) as client:
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["gone"] == ["m"]
        assert (await client.get("/health/live")).status_code == 200
        refused = await client.post(CHAT, json=request("single", max_tokens=8))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"


async def is_well_again(app: FastAPI) -> None:
    """The next request after a restart is answered, and readiness is green."""
    async with client_of(app) as client:
        reply = await client.post(CHAT, json=request("best_of_n", max_tokens=8))
        assert reply.status_code == 200, reply.text
        assert (await client.get("/health/ready")).status_code == 200
    assert await claimed_pages(app) == 0
