"""The whole server on vLLM: asked by the OpenAI SDK, left by clients, bereft of its engine."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from engines.base import Health
from engines.vllm_engine import VllmEngine
from server.settings import Settings
from tests.api.harness import CHAT, Exchange, chunks_of, claimed_pages, client_of, serving
from tests.every_strategy import UNDER_ANY_JUDGE
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED, SOON_S, until

pytestmark = SHARED

PROBLEM = "Tom has 12 apples. He buys 7 more and then gives 5 away. How many apples does Tom have?"
MESSAGES: Any = [{"role": "user", "content": PROBLEM}]


@pytest.mark.parametrize("strategy", UNDER_ANY_JUDGE)
async def test_the_sdk_gets_answers_streamed_and_not(app: FastAPI, strategy: str) -> None:
    params = {} if strategy == "single" else {"width": 4}
    asked: dict[str, Any] = {
        "model": "sapling",
        "messages": MESSAGES,
        "max_tokens": 120,
        "seed": 7,
        "extra_body": {"bough": {"strategy": strategy, "params": params}},
    }
    async with client_of(app) as client:
        sdk = AsyncOpenAI(
            api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
        )
        whole = await sdk.chat.completions.create(**asked)
        stream = await sdk.chat.completions.create(**asked, stream=True)
        chunks = [chunk async for chunk in stream]
    content = whole.choices[0].message.content
    assert content
    assert whole.bough["strategy"] == strategy  # type: ignore[attr-defined]
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == content
    assert await claimed_pages(app) == 0


async def test_logprobs_of_the_answer(app: FastAPI) -> None:
    async with client_of(app) as client:
        sent = {"model": "sapling", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        reply = await client.post(CHAT, json={**sent, "logprobs": True, "top_logprobs": 3})
    tokens = reply.json()["choices"][0]["logprobs"]["content"]
    assert tokens
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy


async def test_a_prompt_too_long_is_refused_with_the_numbers(app: FastAPI) -> None:
    async with client_of(app) as client:
        long = [{"role": "user", "content": "7 " * 5000}]
        reply = await client.post(CHAT, json={"model": "sapling", "messages": long})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert "2048" in reply.json()["error"]["message"]


async def test_a_full_context_ends_the_answer(app: FastAPI, sapling: VllmEngine) -> None:
    async with client_of(app) as client:
        room = 6
        for words in range(1900, 0, -1):  # as long a prompt as leaves a few tokens
            long = [{"role": "user", "content": "7 " * words}]
            used = len(sapling.render(long))  # type: ignore[arg-type]
            if used < sapling.info.context_tokens - room:
                break
        reply = (await client.post(CHAT, json={"model": "sapling", "messages": long})).json()
    assert reply["choices"][0]["finish_reason"] in ("length", "stop")
    assert reply["usage"]["completion_tokens"] <= sapling.info.context_tokens - used


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("strategy", ["single", "best_of_n", "ets"])
async def test_a_client_that_leaves_stops_its_branches(
    app: FastAPI, sapling: VllmEngine, strategy: str, stream: bool
) -> None:
    params = {} if strategy == "single" else {"width": 8}
    exchange = Exchange(
        app,
        CHAT,
        {
            "model": "sapling",
            "messages": MESSAGES,
            "max_tokens": 1500,
            "stream": stream,
            "temperature": 2.0,
            "bough": {"strategy": strategy, "params": params},
        },
        headers={"content-type": "application/json"},
    )
    await until(lambda: unfinished(sapling) > 0)
    assert not exchange.task.done()
    await exchange.leave()
    await until(lambda: unfinished(sapling) == 0)
    assert sapling.stats().running == 0
    assert await claimed_pages(app) == 0


def unfinished(engine: VllmEngine) -> int:
    """Requests that vLLM itself still has."""
    return int(engine._backend._llm.get_num_unfinished_requests())


def kill_core(engine: VllmEngine) -> None:
    manager = engine._backend._llm.engine_core.resources.engine_manager
    for process in manager.processes:
        os.kill(process.pid, signal.SIGKILL)


def tiny_settings(tiny_model: Path) -> Settings:
    options = {**SMALL, "max_step_tokens": 12}
    model = {
        "engine": {"kind": "vllm", "model": str(tiny_model), "options": options},
        "reward_model": "constant",
    }
    return Settings(models={"tiny": model}, reward_models={"constant": {"kind": "constant"}})


async def test_a_killed_engine_ends_its_searches(tiny_model: Path) -> None:
    sent = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the cat"}],
        "max_tokens": 120,
        "seed": 1,
    }
    search = {**sent, "bough": {"strategy": "beam", "params": {"width": 4}}}
    async with serving(tiny_settings(tiny_model)) as app, client_of(app) as client:
        engine = app.state.services.catalog.models["tiny"].engine
        running = [
            asyncio.create_task(client.post(CHAT, json=asked))
            for asked in (sent, search, {**search, "stream": True})
        ]
        await until(lambda: unfinished(engine) >= 3)
        kill_core(engine)
        async with asyncio.timeout(SOON_S):
            replies = await asyncio.gather(*running)
        for reply in replies:
            ended_well_or_said_so(reply)
        assert replies[0].status_code == 503
        assert engine.health is Health.DEAD
        for path in ("/health/ready", "/health/live"):
            assert (await client.get(path)).status_code == 503
        assert await claimed_pages(app) == 0
        refused = await client.post(CHAT, json=sent)
        assert refused.json()["error"]["code"] == "engine_unavailable"


def ended_well_or_said_so(reply: httpx.Response) -> None:
    if reply.headers["content-type"].startswith("text/event-stream"):
        last = chunks_of(reply.text)[-1]
        assert "[DONE]" in reply.text or last["error"]["code"] == "engine_unavailable"
    elif reply.status_code == 200:
        assert reply.json()["choices"][0]["message"]["content"]
    else:
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "engine_unavailable"
