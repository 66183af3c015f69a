"""The response cache: off by default, honest when on, harmless when its store is down."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.harness import (
    CHAT,
    body,
    chunks_of,
    client_of,
    content_of,
    noisy_settings,
    serving,
)

ON: dict[str, Any] = {"cache": {"responses": True}}


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(CHAT, json=body(max_tokens=12, **fields))
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def test_off_by_default() -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        for _ in range(2):
            assert (await ask(client, seed=1))["bough"]["cached"] is False


async def test_a_hit_is_the_same_answer_and_says_so() -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        first = await ask(client, seed=1, bough={"return": {"candidates": 2}})
        second = await ask(client, seed=1, bough={"return": {"candidates": 2}})
        assert first["bough"].pop("cached") is False
        assert second["bough"].pop("cached") is True
        assert second["id"] != first["id"]
        for name in ("choices", "usage", "bough"):
            assert second[name] == first[name]
        tree = await client.get(f"/v1/runs/{second['bough']['run_id']}/tree")
        assert tree.status_code == 200
        text = (await client.get("/metrics")).text
        assert 'bough_response_cache_total{result="hit"} 1.0' in text
        assert 'bough_response_cache_total{result="miss"} 1.0' in text


async def test_a_hit_streams_too() -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        first = await ask(client, seed=1)
        response = await client.post(
            CHAT,
            json=body(max_tokens=12, seed=1, stream=True, stream_options={"include_usage": True}),
        )
    chunks = chunks_of(response.text)
    assert content_of(chunks) == first["choices"][0]["message"]["content"]
    assert chunks[-2]["bough"]["cached"] is True
    assert chunks[-1]["usage"] == first["usage"]


async def test_a_hit_streams_the_events_of_its_run() -> None:
    fields: dict[str, Any] = {"seed": 1, "bough": {"return": {"events": True}}}
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        first = await ask(client, **fields)
        response = await client.post(CHAT, json=body(max_tokens=12, stream=True, **fields))
    blocks = [chunk["bough"] for chunk in chunks_of(response.text) if "bough" in chunk]
    assert [block["event"] for block in blocks[:-1]] == first["bough"]["events"]
    assert blocks[-1]["cached"] is True
    assert "events" not in blocks[-1]


async def test_streamed_answers_are_stored() -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        await client.post(CHAT, json=body(max_tokens=12, seed=1, stream=True))
        assert (await ask(client, seed=1))["bough"]["cached"] is True


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"seed": 1, "temperature": 0.5},
        {"seed": 1, "top_p": 0.5},
        {"seed": 1, "stop": "x"},
        {"seed": 1, "text": "else"},
        {"seed": 1, "n": 2},
        {"seed": 1, "logprobs": True},
        {"seed": 1, "user": "u"},
        {"seed": 1, "bough": {"strategy": "best_of_n"}},
        {"seed": 1, "bough": {"reward_model": "verifier"}},
        {"seed": 1, "bough": {"budget": {"max_tokens": 5}}},
        {"seed": 1, "bough": {"return": {"candidates": 1}}},
        {"seed": 1, "bough": {"cache": False}},
    ],
    ids=str,
)
async def test_whatever_differs_misses(other: dict[str, Any]) -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        await ask(client, seed=1)
        assert (await ask(client, **other))["bough"]["cached"] is False


async def test_only_reproducible_requests_take_part() -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        for _ in range(2):
            assert (await ask(client))["bough"]["cached"] is False
        greedy = [(await ask(client, temperature=0))["bough"]["cached"] for _ in range(2)]
        assert greedy == [False, True]


async def test_bypassing_neither_reads_nor_writes() -> None:
    async with serving(noisy_settings(**ON)) as app, client_of(app) as client:
        for _ in range(2):
            reply = await ask(client, seed=3, bough={"cache": False})
            assert reply["bough"]["cached"] is False
        assert (await ask(client, seed=3))["bough"]["cached"] is False
