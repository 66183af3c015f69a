"""`bough.schedule` through the real OpenAI SDK: with every strategy, sized or not, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from engines.base import Capability
from engines.echo import EchoEngine, EchoOptions
from search.plugins import load
from tests.api.harness import CHAT, HELLO, body, claimed_pages, client_of, noisy_settings, serving

MESSAGES: Any = [{"role": "user", "content": HELLO}]
COOL = {"kind": "annealed", "tau_max": 1.1, "tau_min": 0.2, "warmup_tokens": 2}


def sdk_of(client: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
    )


async def ask(sdk: AsyncOpenAI, strategy: str, schedule: Any, **fields: Any) -> Any:
    params = load("bough.strategies")[strategy].Params.model_fields
    bough = {
        "strategy": strategy,
        "params": {"width": 4} if "width" in params else {},
        "schedule": schedule,
    }
    asked: dict[str, Any] = {"max_completion_tokens": 24, "seed": 7, **fields}
    return await sdk.chat.completions.create(
        model="echo", messages=MESSAGES, extra_body={"bough": bough}, **asked
    )


DRAWING = [
    name
    for name, kind in load("bough.strategies").items()
    if not getattr(kind, "needs_next_rewards", False) and "denoise" not in kind.requires
]
"""Strategies that draw token by token: what picks every token itself has no temperature."""


@pytest.mark.parametrize("strategy", DRAWING)
async def test_every_strategy_takes_one(noisy: httpx.AsyncClient, strategy: str) -> None:
    sdk = sdk_of(noisy)
    got = await ask(sdk, strategy, {**COOL, "decay_tokens": 9})
    assert got.choices[0].message.content
    assert got.bough["stop_reason"] == "done"
    assert "bough.schedule" not in got.bough["ignored"]
    # A schedule that is as good as none, for comparison; all else is equal.
    flat = {"kind": "annealed", "tau_max": 1, "tau_min": 1, "decay_tokens": 9}
    plain = await ask(sdk, strategy, flat)
    texts = {got.choices[0].message.content, plain.choices[0].message.content}
    spent = {got.bough["spent"]["generated_tokens"], plain.bough["spent"]["generated_tokens"]}
    assert len(texts) + len(spent) > 2, "the schedule changed nothing"


async def test_one_that_never_leaves_1_is_plain_sampling(noisy: httpx.AsyncClient) -> None:
    sdk = sdk_of(noisy)
    flat = {"kind": "annealed", "tau_max": 1, "tau_min": 1, "decay_tokens": 9}
    for strategy in ("single", "self_consistency", "beam"):
        got, plain = [await ask(sdk, strategy, schedule) for schedule in (flat, None)]
        assert got.choices == plain.choices


@pytest.mark.parametrize("strategy", ["single", "ets", "annealed"])
async def test_streamed_it_is_the_same(noisy: httpx.AsyncClient, strategy: str) -> None:
    sdk = sdk_of(noisy)
    whole = await ask(sdk, strategy, COOL)
    stream = await ask(sdk, strategy, COOL, stream=True)
    chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content


async def test_left_to_a_pilot_the_reply_says_the_size(noisy: httpx.AsyncClient) -> None:
    sdk = sdk_of(noisy)
    sized = await ask(sdk, "single", COOL)
    name, _, decay = sized.bough["resolved"].partition(": decay_tokens ")
    assert name == "single"
    again = await ask(sdk, "single", {**COOL, "decay_tokens": float(decay)})
    assert again.choices == sized.choices
    drawn = [one.bough["spent"]["generated_tokens"] for one in (sized, again)]
    assert drawn[0] > drawn[1], "the pilot is paid for"
    assert sized.usage.completion_tokens == drawn[0]


async def test_what_has_no_effect_is_listed(noisy: httpx.AsyncClient) -> None:
    sdk = sdk_of(noisy)
    greedy = await ask(sdk, "single", COOL, temperature=0)
    assert greedy.bough["ignored"] == ["bough.schedule"]
    assert greedy.choices == (await ask(sdk, "single", None, temperature=0)).choices
    sized = await ask(sdk, "single", {**COOL, "decay_tokens": 9, "pilot": 2, "floor_ratio": 0.5})
    assert sized.bough["ignored"] == ["bough.schedule.floor_ratio", "bough.schedule.pilot"]


async def test_the_warm_up_has_the_requests_temperature(noisy: httpx.AsyncClient) -> None:
    """A warm-up longer than the answer is that temperature and nothing else."""
    sdk = sdk_of(noisy)
    long = {"kind": "annealed", "warmup_tokens": 1000, "decay_tokens": 9}
    got = await ask(sdk, "single", long, temperature=1.3)
    assert got.choices == (await ask(sdk, "single", None, temperature=1.3)).choices


@pytest.mark.parametrize("schedule", [COOL, {**COOL, "decay_tokens": 9}], ids=["unsized", "sized"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
async def test_an_engine_without_schedules_is_a_status(
    app: FastAPI, client: httpx.AsyncClient, schedule: Any, is_stream: bool
) -> None:
    engine = EchoEngine("echo", EchoOptions())
    able = engine.info.capabilities - {Capability.SCHEDULE}
    engine.info = replace(engine.info, capabilities=able)
    catalog = app.state.services.catalog
    catalog.models["echo"] = replace(catalog.models["echo"], engine=engine)
    sdk = sdk_of(client)
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(sdk, "single", schedule, stream=is_stream)
    error = refused.value
    assert (error.code, error.param) == ("unsupported_by_engine", "bough.schedule")
    with pytest.raises(openai.BadRequestError) as strategy:
        await ask(sdk, "annealed", None, stream=is_stream)
    error = strategy.value
    assert (error.code, error.param) == ("unsupported_by_engine", "bough.strategy")
    assert (await ask(sdk, "single", None)).choices[0].message.content == HELLO
    assert await claimed_pages(app) == 0


async def test_the_cache_tells_schedules_apart() -> None:
    on = {"cache": {"responses": True}}
    async with serving(noisy_settings(**on)) as app, client_of(app) as client:
        seen = []
        for fields in ({}, {"decay_tokens": 9}, {"decay_tokens": 5}, {"decay_tokens": 9}):
            schedule = {**COOL, **fields}
            sent = body(max_tokens=12, seed=1, bough={"schedule": schedule})
            seen.append((await client.post(CHAT, json=sent)).json()["bough"]["cached"])
        assert seen == [False, False, False, True]
