"""Upstreams that are busy, refuse, break off, fall silent, or are killed and come back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from engines import openai_upstream
from engines.base import Continuation, Delta, Finish, Health, Sampling
from engines.errors import (
    ContextLengthExceeded,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    UpstreamRefused,
)
from engines.openai_http import OpenAIEngine, open_engine
from reward_models import remote
from server.settings import Settings
from tests.api.harness import CHAT, client_of, serving
from tests.openai_upstream import Broken, Script, says, scripted
from tests.unit.reward_models.services import Service
from tests.unit.reward_models.services import serving as serving_judge

pytestmark = pytest.mark.faults

STATED = {"dialect": "plain", "context_tokens": 4000, "capabilities": []}
GOOD = [says("two "), says("words", "stop"), b"data: [DONE]\n\n"]
SOON = {"retry-after-ms": "1"}
MESSAGES = [{"role": "user", "content": "say two words"}]


def engine_at(url: str, **options: Any) -> OpenAIEngine:
    return open_engine("up", "m", {"base_url": url, **STATED, **options})


async def answer(engine: OpenAIEngine, how: Sampling | None = None) -> Continuation:
    prefix = await engine.open(engine.render(MESSAGES))
    async for item in engine.sample(prefix, how or Sampling()):
        if isinstance(item, Continuation):
            return item
    raise AssertionError("no continuation came")


async def failure(engine: OpenAIEngine, how: Sampling | None = None) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await answer(engine, how)
    await engine.aclose()
    return caught.value


async def test_it_is_asked_again_before_the_first_byte() -> None:
    script = Script([(429, {}), (500, {}), (503, {}), GOOD], SOON)
    with scripted(script) as url:
        engine = engine_at(url, max_retries=3)
        done = await answer(engine)
        assert (done.text, done.finish) == ("two words", Finish.STOP_TOKEN)
        assert len(script.seen) == 4
        assert engine.health is Health.READY
        await engine.aclose()


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_asking_again_has_an_end(status: int) -> None:
    script = Script([(status, {"error": {"message": "down for repairs"}})], SOON)
    with scripted(script) as url:
        error = await failure(engine_at(url, max_retries=2))
        assert isinstance(error, EngineClosed)
        assert str(status) in str(error)
        assert "down for repairs" in str(error)
        assert len(script.seen) == 3


async def test_a_busy_upstream_says_when_to_come_back() -> None:
    script = Script([(429, {"error": {"message": "slow down"}})], {**SOON, "retry-after": "17"})
    with scripted(script) as url:
        error = await failure(engine_at(url, max_retries=1))
        assert isinstance(error, EngineOverloaded)
        assert error.retry_after_s == 17
        assert len(script.seen) == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_the_key_is_in_no_message(status: int, caplog: pytest.LogCaptureFixture) -> None:
    script = Script([(status, {"error": {"message": "wrong key sk-secret"}})])
    with scripted(script) as url:
        error = await failure(engine_at(url, api_key="sk-secret"))
        assert isinstance(error, UpstreamRefused)
        assert "api_key" in str(error)
        assert "sk-secret" not in str(error) + caplog.text
        assert script.keys == ["Bearer sk-secret"]


async def test_what_stands_for_no_key_is_not_blotted_out() -> None:
    script = Script([(400, {"error": {"message": "none of the tools fits"}})])
    with scripted(script) as url:
        assert "none of the tools fits" in str(await failure(engine_at(url)))
        assert script.keys == ["Bearer none"]


@pytest.mark.parametrize(
    ("status", "named"), [(404, "engine.model"), (400, "temperature"), (422, "temperature")]
)
async def test_a_refusal_says_what_to_change(status: int, named: str) -> None:
    script = Script([(status, {"error": {"message": "temperature must be 1"}})])
    with scripted(script) as url:
        error = await failure(engine_at(url))
        assert isinstance(error, UpstreamRefused)
        assert named in str(error)
        assert len(script.seen) == 1


@pytest.mark.parametrize(
    ("error", "numbers"),
    [
        (
            {
                "message": "This model's maximum context length is 4096 tokens. However, you "
                "requested 8 output tokens and your prompt contains 5000 input tokens."
            },
            (5000, 4096),
        ),
        (
            {
                "code": "context_length_exceeded",
                "message": "This model's maximum context length is 4096 tokens. However, your "
                "messages resulted in 5000 tokens.",
            },
            (5000, 4096),
        ),
        (
            {
                "type": "exceed_context_size_error",
                "message": "request (5000 tokens) exceeds the available context size (4096 tokens)",
            },
            (5000, 4096),
        ),
        (
            {
                "code": "context_length_exceeded",
                "message": "the prompt has 5000 tokens; this model reads at most 4096, and at "
                "least one must be left for the answer",
            },
            (5000, 4096),
        ),
    ],
    ids=["vllm", "openai", "llamacpp", "bough"],
)
async def test_a_prompt_too_long_is_said_with_the_numbers(
    error: dict[str, Any], numbers: tuple[int, int]
) -> None:
    with scripted(Script([(400, {"error": error})])) as url:
        refused = await failure(engine_at(url))
        assert isinstance(refused, ContextLengthExceeded)
        assert (refused.prompt_tokens, refused.context_tokens) == numbers


async def test_an_answer_that_could_grow_too_long_ends_with_the_context() -> None:
    too_long = (400, {"error": {"message": "maximum context length is 4000 tokens"}})
    script = Script([too_long, [says("as far as it goes", "length")]])
    with scripted(script) as url:
        engine = engine_at(url)
        done = await answer(engine, Sampling(max_tokens=3999))
        assert (done.text, done.finish) == ("as far as it goes", Finish.CONTEXT)
        assert ["max_tokens" in body for body in script.seen] == [True, False]
        await engine.aclose()


@pytest.mark.parametrize(
    "events",
    [
        [says("two ")],
        [says("two "), b"data: [DONE]\n\n"],
        [says("two "), Broken("connection lost")],
        [says("two "), {"error": {"message": "engine dead", "code": 500}}],
        [says("two "), b"data: {not json\n\n"],
        [says("two "), {"choices": [{"delta": "?", "logprobs": {"content": [{}]}}]}],
        [says("two "), {"choices": "?"}],
    ],
    ids=["ends", "done", "breaks", "error", "no-json", "no-token", "no-choices"],
)
async def test_nothing_is_asked_again_after_the_first_byte(events: list[Any]) -> None:
    script = Script([events, GOOD], SOON)
    with scripted(script) as url:
        assert isinstance(await failure(engine_at(url)), EngineClosed)
        assert len(script.seen) == 1


async def test_silence_has_an_end() -> None:
    script = Script([[says("two ")], GOOD], hangs=True)
    with scripted(script) as url:
        error = await failure(engine_at(url, idle_timeout_s=0.2))
        assert isinstance(error, EngineClosed)
        assert "in time" in str(error)
        assert len(script.seen) == 1
        assert await asyncio.to_thread(script.gone.wait, 10)


async def test_no_answer_in_time_is_asked_for_again_but_not_for_ever() -> None:
    script = Script([None, GOOD])
    with scripted(script) as url:
        engine = engine_at(url, idle_timeout_s=0.2, max_retries=1)
        assert (await answer(engine)).text == "two words"
        await engine.aclose()
    script = Script([None])
    with scripted(script) as url:
        error = await failure(engine_at(url, idle_timeout_s=0.2, max_retries=1))
    assert isinstance(error, EngineClosed)
    assert "in time" in str(error)
    assert len(script.seen) == 2


async def test_nobody_there() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    error = await failure(engine_at(f"http://127.0.0.1:{port}/v1", max_retries=0))
    assert isinstance(error, EngineClosed)


async def test_whoever_goes_takes_the_request_along() -> None:
    script = Script([[says("two ")]], hangs=True)
    with scripted(script) as url:
        engine = engine_at(url)
        prefix = await engine.open(engine.render(MESSAGES))
        items = engine.sample(prefix, Sampling(), n=2, seeds=(1, 2))
        assert isinstance(await anext(items), Delta)
        await items.aclose()
        assert engine.stats().running == 0
        assert await asyncio.to_thread(script.gone.wait, 10)
        await engine.aclose()


async def test_closing_the_engine_ends_those_who_wait() -> None:
    script = Script([[says("two ")]], hangs=True)
    with scripted(script) as url:
        engine = engine_at(url)
        prefix = await engine.open(engine.render(MESSAGES))
        items = engine.sample(prefix, Sampling())
        assert isinstance(await anext(items), Delta)
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        await engine.aclose()
        with pytest.raises(EngineClosed):
            await waiting
        assert engine.health is Health.DEAD


async def test_a_lost_upstream_is_away_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_upstream, "_FIRST_WAIT_S", 0.0)
    script = Script([[says("two "), Broken("lost")], GOOD])
    with scripted(script) as url:
        engine = engine_at(url)
        with pytest.raises(EngineClosed):
            await answer(engine)
        assert engine.health is Health.AWAY
        await settled(lambda: engine.health is Health.READY)
        assert (await answer(engine)).text == "two words"
        await engine.aclose()


async def settled(holds: Callable[[], bool]) -> None:
    """Return when it holds; a thread takes its time to answer."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - a thread or a process tells nobody
            await asyncio.sleep(0.01)


def front(url: str, model: str = "m", **options: Any) -> Settings:
    """A bough in front of an upstream that it asks once."""
    engine = {
        "kind": "openai",
        "model": model,
        "options": {"base_url": url, **STATED, "max_retries": 0, **options},
    }
    return Settings(
        models={"up": {"engine": engine, "reward_model": "constant"}},
        reward_models={"constant": {"kind": "constant"}},
    )


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        ((429, {}), 429, "overloaded"),
        ((401, {}), 502, "upstream_refused"),
        ((404, {}), 502, "upstream_refused"),
        ((500, {}), 503, "engine_unavailable"),
        ((400, {"error": {"message": "maximum context length 9"}}), 400, "context_length_exceeded"),
    ],
)
async def test_failures_on_the_wire(reply: Any, status: int, code: str) -> None:
    script = Script([reply], {"retry-after": "9"})
    with scripted(script) as url:
        async with serving(front(url)) as app, client_of(app) as client:
            got = await client.post(CHAT, json={"model": "up", "messages": MESSAGES})
    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    assert got.headers.get("retry-after") == ("9" if status == 429 else None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bough": {"strategy": "beam"}}, "continue_text"),
        ({"bough": {"strategy": "ets"}}, "continue_text"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_what_the_upstream_cannot_do_is_refused(fields: dict[str, Any], named: str) -> None:
    script = Script([GOOD])
    with scripted(script) as url:
        async with serving(front(url)) as app, client_of(app) as client:
            asked = {"model": "up", "messages": MESSAGES, **fields}
            got = await client.post(CHAT, json=asked)
            streamed = await client.post(CHAT, json={**asked, "stream": True})
    error = got.json()["error"]
    assert (streamed.status_code, streamed.json()) == (400, got.json())
    assert (got.status_code, error["code"]) == (400, "unsupported_by_engine")
    assert named in error["message"]
    assert script.seen == []


async def test_what_changes_nothing_is_said() -> None:
    with scripted(Script([GOOD])) as url:
        async with serving(front(url)) as app, client_of(app) as client:
            asked = {"model": "up", "messages": MESSAGES, "seed": 3, "ignore_eos": True}
            reply = (await client.post(CHAT, json=asked)).json()
    assert reply["choices"][0]["message"]["content"] == "two words"
    assert set(reply["bough"]["ignored"]) == {"seed", "ignore_eos"}


@contextmanager
def bough_process(port: int) -> Iterator[subprocess.Popen[str]]:
    """A bough server in a process of its own that echoes slowly."""
    command = [
        *(sys.executable, "-m", "server.cli", "serve", "--port", str(port)),
        *("--engine.kind", "echo", "--engine.options", '{"token_s": 0.02}'),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "BOUGH_LOG_LEVEL": "error"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()  # its URL, once it answers
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


async def test_an_upstream_that_is_killed_and_comes_back() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    search = {"strategy": "best_of_n", "params": {"width": 4}}
    asked = {"model": "up", "messages": [{"role": "user", "content": "word " * 60}]}
    settings = front(f"http://127.0.0.1:{port}/v1", "echo", max_retries=2)
    async with serving(settings) as app, client_of(app) as client:
        with bough_process(port) as process:
            services = app.state.services
            run = asyncio.ensure_future(client.post(CHAT, json={**asked, "bough": search}))
            await settled(lambda: services.catalog.stats()["up"].running == 4)
            os.killpg(process.pid, signal.SIGKILL)
            async with asyncio.timeout(20):  # later is a hang; it takes some milliseconds
                got = await run
        assert got.status_code == 503
        assert services.catalog.stats()["up"].running == 0
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["gone"]) == (503, ["up"])
        assert (await client.get("/health/live")).status_code == 200
        with bough_process(port):
            engine = services.catalog.models["up"].engine
            await settled(lambda: engine.health is Health.READY)
            assert (await client.get("/health/ready")).status_code == 200
            got = await client.post(CHAT, json=asked | {"max_tokens": 4})
        assert got.status_code == 200
        assert got.json()["choices"][0]["message"]["content"] == "word"


async def test_readiness_follows_a_judge_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.0)
    service = Service()
    with scripted(Script([GOOD])) as url, serving_judge(service) as judge_url:
        options = {"base_url": judge_url, "max_retries": 0}
        judges = {"far": {"kind": "http", "options": options}}
        model = front(url).models["up"].model_copy(update={"reward_model": "far"})
        settings = Settings(models={"up": model}, reward_models=judges)
        search = {"strategy": "best_of_n", "params": {"width": 2}}
        asked = {"model": "up", "messages": MESSAGES, "bough": search}
        async with serving(settings) as app, client_of(app) as client:
            service.failures = [503]
            got = await client.post(CHAT, json=asked)
            assert got.json()["error"]["code"] == "reward_model_unavailable"
            judge = app.state.services.catalog.judges["far"]
            await settled(lambda: judge.health is Health.READY)
            assert (await client.get("/health/ready")).status_code == 200
            got = await client.post(CHAT, json=asked)
            assert got.status_code == 200, got.text
