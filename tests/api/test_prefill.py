"""Answers that the request begins, over the wire: every strategy, whole and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from engines.base import Engine
from engines.echo import open_engine as open_echo
from search.registry import strategy_class
from server.serve import BackgroundServer
from server.settings import Settings
from tests.api.harness import (
    CHAT,
    HELLO,
    chunks_of,
    client_of,
    content_of,
    echo_settings,
    noisy_settings,
    serving,
)
from tests.every_strategy import UNDER_ANY_JUDGE
from tests.openai_upstream import upstream_over
from tests.sglang_fake import FakeOptions, FakeServer, write_fake_model
from tests.sglang_search import settings_of

BEGUN, REST = HELLO[:6], HELLO[6:]
USER = {"role": "user", "content": HELLO}


def assistant(text: Any = BEGUN) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def sdk_of(client: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
    )


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(CHAT, json={"model": "echo", "messages": [USER, assistant()]} | fields)


@pytest.mark.parametrize("strategy", UNDER_ANY_JUDGE)
async def test_every_strategy_goes_on(strategy: str, client: httpx.AsyncClient) -> None:
    has_width = "width" in strategy_class(strategy).Params.model_fields
    bough = {"strategy": strategy, "params": {"width": 3} if has_width else {}}
    sdk, models = sdk_of(client), (await client.get("/v1/models")).json()["data"]
    if f"echo:{strategy}" not in [one["id"] for one in models]:
        got = await ask(client, bough=bough)
        assert got.json()["error"]["code"] == "unsupported_by_engine"
        return
    asked: dict[str, Any] = {
        "model": "echo",
        "messages": [USER, assistant()],
        "seed": 3,
        "extra_body": {"bough": bough},
    }
    whole = await sdk.chat.completions.create(**asked)
    assert whole.choices[0].message.content == REST
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    # a marker and an end for the user's message, a marker for the assistant's
    assert whole.usage.prompt_tokens == len(HELLO) + len(BEGUN) + 3
    options = {"include_usage": True}
    stream = await sdk.chat.completions.create(**asked, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == REST
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "beam"])
async def test_streams_of_what_is_really_drawn(strategy: str) -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        fields = {"seed": 5, "max_tokens": 40, "bough": {"strategy": strategy}}
        whole = (await ask(client, **fields)).json()
        streamed = await ask(client, **fields, stream=True)
        assert content_of(chunks_of(streamed.text)) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "goes_on"),
    [
        ({}, True),
        ({"continue_final_message": None, "add_generation_prompt": None}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": True}, True),
        ({"add_generation_prompt": False}, True),
        ({"add_generation_prompt": True}, False),
        ({"continue_final_message": False}, False),
        ({"continue_final_message": False, "add_generation_prompt": True}, False),
    ],
)
async def test_a_turn_of_its_own_must_be_asked_for(
    fields: dict[str, Any], goes_on: bool, client: httpx.AsyncClient
) -> None:
    got = (await ask(client, **fields)).json()
    assert got["choices"][0]["message"]["content"] == (REST if goes_on else HELLO)
    assert got["bough"]["ignored"] == []


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        (
            [USER, assistant()],
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ([USER], {"continue_final_message": True}, "continue_final_message"),
        ([USER], {"add_generation_prompt": False}, "add_generation_prompt"),
        (
            [USER, assistant()],
            {"continue_final_message": False, "add_generation_prompt": False},
            "add_generation_prompt",
        ),
        ([USER, assistant("")], {}, "messages[1].content"),
        ([USER, assistant(" \n")], {"continue_final_message": True}, "messages[1].content"),
        ([USER, assistant([{"type": "text", "text": ""}])], {}, "messages[1].content"),
    ],
)
async def test_contradictions_are_refused(
    messages: list[Any], fields: dict[str, Any], param: str, client: httpx.AsyncClient
) -> None:
    got = await ask(client, messages=messages, **fields)
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["param"]) == (400, "invalid_value", param)


async def test_parts_are_text_and_wrong_types_are_named(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": BEGUN[:2]}, {"type": "text", "text": BEGUN[2:]}]
    got = (await ask(client, messages=[USER, assistant(parts)])).json()
    assert got["choices"][0]["message"]["content"] == REST
    wrong = await ask(client, continue_final_message="yes")
    assert wrong.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "continue_final_message",
        "code": "invalid_type",
    }


async def test_the_last_turn_is_no_beginning_after_a_finished_one(
    client: httpx.AsyncClient,
) -> None:
    """Turns in between are what they were: only the last message begins the answer."""
    got = (await ask(client, messages=[USER, assistant("so"), USER])).json()
    assert got["choices"][0]["message"]["content"] == HELLO


async def test_cached_answers_are_not_mixed_up() -> None:
    async with serving(echo_settings(cache={"responses": True})) as app, client_of(app) as client:
        on = (await ask(client, seed=1)).json()
        own = (await ask(client, seed=1, continue_final_message=False)).json()
        again = (await ask(client, seed=1)).json()
    texts = [one["choices"][0]["message"]["content"] for one in (on, own, again)]
    assert texts == [REST, HELLO, REST]
    assert [one["bough"]["cached"] for one in (on, own, again)] == [False, False, True]


def echo() -> Engine:
    return open_echo("m", "", {})


def upstream(url: str, **options: Any) -> Settings:
    engine = {"kind": "openai", "model": "m", "options": {"base_url": url, **options}}
    return Settings(
        models={"echo": {"engine": engine, "reward_model": "constant"}},
        reward_models={"constant": {"kind": "constant"}},
    )


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "beam"])
async def test_an_upstream_that_reads_text_goes_on(strategy: str) -> None:
    fields = {"seed": 1, "max_tokens": 40, "bough": {"strategy": strategy}}
    with upstream_over(echo) as url:
        async with serving(upstream(url)) as app, client_of(app) as client:
            whole = (await ask(client, **fields)).json()
            streamed = await ask(client, **fields, stream=True)
    assert whole["choices"][0]["message"]["content"] == REST
    assert content_of(chunks_of(streamed.text)) == REST
    assert whole["usage"]["prompt_tokens"] == len(HELLO) + len(BEGUN) + 3


async def test_a_bough_goes_on_with_what_another_begins() -> None:
    with BackgroundServer(echo_settings()) as url:
        engine = {"kind": "openai", "model": "echo", "options": {"base_url": f"{url}/v1"}}
        async with (
            serving(Settings(models={"echo": {"engine": engine}})) as app,
            client_of(app) as client,
        ):
            got = (await ask(client, max_tokens=40)).json()
    assert got["choices"][0]["message"]["content"] == REST
    assert got["usage"]["prompt_tokens"] == len(HELLO) + len(BEGUN) + 3


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"continue_final_message": True}])
async def test_an_upstream_that_cannot_is_named(fields: dict[str, Any]) -> None:
    stated = {"dialect": "plain", "context_tokens": 4000, "capabilities": []}
    with upstream_over(echo, owner="somebody") as url:
        async with serving(upstream(url, **stated)) as app, client_of(app) as client:
            got = await ask(client, **fields)
            own = await ask(client, continue_final_message=False)
    error = got.json()["error"]
    assert got.status_code == 400
    assert (error["code"], error["param"]) == ("unsupported_by_engine", "messages[1]")
    assert "'echo'" in error["message"]
    assert own.json()["choices"][0]["message"]["content"] == HELLO


async def test_what_an_upstream_cannot_do_behind_a_beginning_is_a_status() -> None:
    """To it the beginning is the prompt: refused before a stream has begun."""
    with upstream_over(echo) as url:
        async with serving(upstream(url)) as app, client_of(app) as client:
            got = await ask(client, presence_penalty=0.5, stream=True)
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (400, "presence_penalty")


async def test_sglang_goes_on(tmp_path: Path) -> None:
    model = write_fake_model(tmp_path)
    server = FakeServer(FakeOptions(model_path=str(model)))
    try:
        async with serving(settings_of(server.url)) as app, client_of(app) as client:
            engine = app.state.services.catalog.models["m"].engine
            fields = {"model": "m", "max_tokens": 8}
            got = (await ask(client, **fields)).json()
            own = (await ask(client, **fields, continue_final_message=False)).json()
    finally:
        server.stop()
    rendered = [engine.render([USER, assistant()], continue_final=on) for on in (True, False)]
    assert engine.decode(rendered[0]).endswith(BEGUN)
    sizes = [one["usage"]["prompt_tokens"] for one in (got, own)]
    assert sizes == [len(one) for one in rendered]
