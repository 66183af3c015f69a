"""The real OpenAI SDK against the app in this process."""

from __future__ import annotations

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from tests.api.harness import HELLO, client_of, noisy_settings, serving

MESSAGES = [{"role": "user", "content": HELLO}]


@pytest.fixture
async def sdk(client: httpx.AsyncClient) -> AsyncOpenAI:
    return sdk_of(client)


def sdk_of(client: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
    )


async def test_completion(sdk: AsyncOpenAI) -> None:
    got = await sdk.chat.completions.create(model="echo", messages=MESSAGES, seed=7)
    assert got.object == "chat.completion"
    assert got.id.startswith("chatcmpl-")
    assert got.model == "echo"
    assert [choice.index for choice in got.choices] == [0]
    assert got.choices[0].message.role == "assistant"
    assert got.choices[0].message.content == HELLO
    assert got.choices[0].finish_reason == "stop"
    assert got.usage is not None
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.bough["seed"] == 7  # type: ignore[attr-defined]


async def test_stream(sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == HELLO
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].bough["stop_reason"] == "done"  # type: ignore[attr-defined]


async def test_search_by_extra_body(sdk: AsyncOpenAI) -> None:
    got = await sdk.chat.completions.create(
        model="echo",
        messages=MESSAGES,
        extra_body={
            "bough": {
                "strategy": "best_of_n",
                "params": {"width": 3},
                "reward_model": "verifier",
                "return": {"candidates": 2},
            }
        },
    )
    bough = got.bough  # type: ignore[attr-defined]
    assert (bough["strategy"], bough["resolved"]) == ("best_of_n", "best_of_n")
    assert bough["spent"]["candidates"] == 3
    assert bough["spent"]["reward_calls"] == 1  # an echo is an echo: equal answers are judged once
    assert len(bough["candidates"]) == 2
    assert set(bough["candidates"][0]) == {"content", "score", "finish_reason"}
    assert got.usage is not None
    assert got.usage.completion_tokens_details is not None
    ledger = got.usage.bough  # type: ignore[attr-defined]
    assert ledger["reward_model"]["model"] == "verifier"
    assert ledger["reward_model"]["calls"] == 1
    assert ledger["generator"]["generated_tokens"] == got.usage.completion_tokens
    assert got.usage.completion_tokens_details.reasoning_tokens == (
        got.usage.completion_tokens - len(HELLO.encode())
    )


async def test_model_suffix_and_lists(sdk: AsyncOpenAI) -> None:
    ids = [model.id async for model in sdk.models.list()]
    assert ids[0] == "echo"
    assert "echo:best_of_n" in ids
    one = await sdk.models.retrieve("echo:best_of_n")
    assert (one.object, one.owned_by) == ("model", "bough")
    got = await sdk.chat.completions.create(model="echo:best_of_n", messages=MESSAGES)
    assert got.bough["resolved"] == "best_of_n"  # type: ignore[attr-defined]


async def test_logprobs(sdk: AsyncOpenAI) -> None:
    got = await sdk.chat.completions.create(
        model="echo", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    assert got.choices[0].logprobs is not None
    rows = got.choices[0].logprobs.content
    assert rows is not None
    assert "".join(row.token for row in rows) == HELLO
    assert all(len(row.top_logprobs) == 2 for row in rows)
    assert all(row.top_logprobs[0].token == row.token for row in rows)
    assert bytes(b for row in rows for b in row.bytes or []) == HELLO.encode()


async def test_streamed_logprobs_are_the_same(sdk: AsyncOpenAI) -> None:
    asked = {"model": "echo", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1, "seed": 1}
    whole = await sdk.chat.completions.create(**asked)
    stream = await sdk.chat.completions.create(**asked, stream=True)
    rows = [
        row
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for row in choice.logprobs.content or []
    ]
    assert whole.choices[0].logprobs is not None
    assert rows == whole.choices[0].logprobs.content


async def test_errors_become_the_sdks_own(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="nothing", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await sdk.chat.completions.create(model="echo", messages=MESSAGES, temperature=99)
    assert (wrong.value.code, wrong.value.param) == ("invalid_value", "temperature")


async def test_n_answers_are_distinct_and_ranked() -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        sdk = sdk_of(client)
        asked = {
            "model": "echo",
            "messages": MESSAGES,
            "n": 3,
            "seed": 5,
            "max_completion_tokens": 12,
            "extra_body": {
                "bough": {
                    "strategy": "best_of_n",
                    "params": {"width": 6},
                    "reward_model": "verifier",
                }
            },
        }
        whole = await sdk.chat.completions.create(**asked)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert len(set(texts)) == 3
        streamed = {0: "", 1: "", 2: ""}
        finished = {}
        async for chunk in await sdk.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    finished[choice.index] = choice.finish_reason
        assert list(streamed.values()) == texts
        assert finished == {c.index: c.finish_reason for c in whole.choices}


async def test_two_apps_in_one_process(app: FastAPI, sdk: AsyncOpenAI) -> None:
    async with serving(noisy_settings()) as other, client_of(other) as client:
        assert other is not app
        for one in (sdk, sdk_of(client)):
            got = await one.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=4)
            assert got.choices[0].message.content
        metrics = (await client.get("/metrics")).text
        assert 'bough_requests_total{status="ok",strategy="single"} 1.0' in metrics
