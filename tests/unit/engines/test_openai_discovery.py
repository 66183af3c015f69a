from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from engines.base import Capability
from engines.errors import ModelLoadError
from engines.openai_http import OpenAIEngine, open_engine
from tests.unit.loadtests.peer import running_app

AT = {"base_url": "http://127.0.0.1:9/v1"}
STATED = {"dialect": "plain", "context_tokens": 100, "capabilities": []}


@contextmanager
def server(models: Any, chat: Any = None, status: int = 200) -> Iterator[str]:
    """A server with this list of models, and this answer to a chat."""
    app = FastAPI()

    @app.get("/v1/models")
    async def listed() -> Response:
        return JSONResponse(models, status, headers={"retry-after-ms": "1"})

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        assert (await request.json())["max_tokens"] == 1
        return JSONResponse(chat or {"error": {"message": "no"}}, 200 if chat else 400)

    with running_app(app) as url:
        yield f"{url}/v1"


def listed(**entry: Any) -> dict[str, Any]:
    return {"data": [{"id": "m", **entry}]}


def opened(url: str, **options: Any) -> OpenAIEngine:
    return open_engine("up", "m", {"base_url": url, **options})


@pytest.mark.parametrize(
    ("entry", "context", "able"),
    [
        (
            {"owned_by": "vllm", "max_model_len": 192},
            192,
            {Capability.CONTINUE_TEXT, Capability.LOGPROBS, Capability.SEED},
        ),
        ({"owned_by": "sglang", "max_model_len": 64}, 64, {Capability.CONTINUE_TEXT}),
        (
            {"owned_by": "bough", "bough": {"context_tokens": 50, "capabilities": ["seed"]}},
            50,
            {Capability.CHAT_ONLY, Capability.SEED},
        ),
        (
            {"owned_by": "bough", "bough": {"context_tokens": 50, "capabilities": ["tokens"]}},
            50,
            {Capability.CONTINUE_TEXT},
        ),
        ({"owned_by": "me", "context_length": 70}, 70, {Capability.CHAT_ONLY}),
    ],
    ids=["vllm", "sglang", "chats of bough", "bough", "plain"],
)
def test_an_upstream_says_what_it_is(
    entry: dict[str, Any], context: int, able: set[Capability]
) -> None:
    with server(listed(**entry)) as url:
        info = opened(url).info
    assert info.context_tokens == context
    assert info.capabilities == able


def test_one_token_shows_whether_there_are_logprobs() -> None:
    chat = {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}]}
    with server(listed(context_length=70), chat) as url:
        assert Capability.LOGPROBS in opened(url).info.capabilities
        assert Capability.LOGPROBS not in opened(url, probe=False).info.capabilities


def test_what_is_stated_is_not_asked() -> None:
    engine = open_engine("up", "m", {**AT, **STATED, "step_delimiters": ["\n"]})
    assert engine.info.capabilities == {Capability.CHAT_ONLY}
    assert engine.info.step_delimiters == ("\n",)
    stated = {**STATED, "dialect": "vllm", "capabilities": ["seed"]}
    engine = open_engine("up", "m", {**AT, **stated})
    assert engine.info.capabilities == {Capability.CONTINUE_TEXT, Capability.SEED}
    engine = open_engine("up", "m", {**AT, **stated, "mode": "chat"})
    assert engine.info.capabilities == {Capability.CHAT_ONLY, Capability.SEED}


def test_another_models_name_is_refused_with_those_there_are() -> None:
    models = {"data": [{"id": "llama"}, {"id": "qwen"}]}
    with server(models) as url, pytest.raises(ModelLoadError, match="it has llama, qwen"):
        opened(url)


def test_a_context_that_nobody_tells_must_be_stated() -> None:
    with server({"data": []}) as url:
        with pytest.raises(ModelLoadError, match=r"set engine\.options\.context_tokens"):
            opened(url)
        assert opened(url, context_tokens=9).info.context_tokens == 9


@pytest.mark.parametrize("status", [401, 500])
def test_an_upstream_that_does_not_answer_is_no_upstream(status: int) -> None:
    said = {"error": {"message": "key sk-secret"}}
    with server(said, status=status) as url, pytest.raises(ModelLoadError) as caught:
        opened(url, api_key="sk-secret", max_retries=1)
    assert str(status) in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_nobody_there_is_said_at_start() -> None:
    with pytest.raises(ModelLoadError, match="start it first"):
        opened(AT["base_url"], max_retries=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "base_url"),
        ({"base_url": "localhost:1"}, "base_url"),
        ({**AT, "tempo": 1}, "tempo"),
        ({**AT, "max_retries": -1}, "max_retries"),
        ({**AT, "capabilities": ["tokens"]}, "capabilities"),
        ({**AT, "mode": "completions"}, "chat_template"),
        ({**AT, **STATED, "mode": "continue"}, "continue_style"),
        ({**AT, **STATED, "chat_template": "/no/such/dir"}, "tokenizer.json"),
        ({**AT, **STATED, "api_key_env": "BOUGH_NO_SUCH_KEY"}, "BOUGH_NO_SUCH_KEY"),
        ({**AT, **STATED, "api_key_file": "/no/such/key"}, "api_key_file"),
        ({**AT, "api_key": ["sk-secret"]}, "api_key"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        open_engine("up", "m", options)
    assert named in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_model_must_be_named() -> None:
    with pytest.raises(ModelLoadError, match=r"engine\.model"):
        open_engine("up", "", AT)


def test_keys_may_lie_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VENDOR_KEY", "sk-variable")
    (tmp_path / "key").write_text("sk-file\n")
    for options, key in (
        ({"api_key_env": "VENDOR_KEY"}, "sk-variable"),
        ({"api_key_file": str(tmp_path / "key")}, "sk-file"),
        ({"api_key": "sk-given"}, "sk-given"),
        ({}, "none"),
    ):
        engine = open_engine("up", "m", {**AT, **STATED, **options})
        assert engine._upstream._client.api_key == key
        assert key not in repr(vars(engine.info))
