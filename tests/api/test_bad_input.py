"""Every refusal that a client can reach: status, code, param, and nothing leaked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from engines.base import Capability, Sampling
from engines.echo import EchoEngine, EchoOptions
from engines.errors import UnsupportedByEngine
from tests.api.harness import CHAT, body, client_of, echo_settings, serving


def annealed(**fields: Any) -> dict[str, Any]:
    """A request with a schedule that has these fields."""
    return body(bough={"schedule": {"kind": "annealed", **fields}})


ROWS: list[tuple[dict[str, Any], int, str, str | None]] = [
    (body(model="ecko"), 404, "model_not_found", "model"),
    (body(model="ecko:single"), 404, "model_not_found", "model"),
    (body(model="echo:singel"), 404, "strategy_not_found", "bough.strategy"),
    (body(bough={"strategy": "best_of_m"}), 404, "strategy_not_found", "bough.strategy"),
    (
        body(bough={"strategy": "best_of_n", "params": {"widht": 3}}),
        400,
        "unknown_parameter",
        "bough.params.widht",
    ),
    (
        body(bough={"strategy": "best_of_n", "params": {"width": "3"}}),
        400,
        "invalid_type",
        "bough.params.width",
    ),
    (
        body(bough={"strategy": "best_of_n", "params": {"width": 0}}),
        400,
        "invalid_value",
        "bough.params.width",
    ),
    (
        body(bough={"strategy": "best_of_n", "params": {"width": 100_000}}),
        400,
        "invalid_value",
        "bough.params.width",
    ),
    (body(bough={"reward_model": "constnt"}), 404, "reward_model_not_found", "bough.reward_model"),
    (
        body(bough={"return": {"candidates": 10**6}}),
        400,
        "invalid_value",
        "bough.return.candidates",
    ),
    (body(bough={"return": {"trace": "some"}}), 400, "invalid_value", "bough.return.trace"),
    (body(bough={"budget": {"max_tokens": -1}}), 400, "invalid_value", "bough.budget.max_tokens"),
    (body(bough={"budget": {"deadline_ms": -5}}), 400, "invalid_value", "bough.budget.deadline_ms"),
    (
        body(bough={"budget": {"max_candidates": -5}}),
        400,
        "invalid_value",
        "bough.budget.max_candidates",
    ),
    (
        body(bough={"budget": {"max_reward_calls": -5}}),
        400,
        "invalid_value",
        "bough.budget.max_reward_calls",
    ),
    (body(bough={"budget": {"max_nfe": -5}}), 400, "invalid_value", "bough.budget.max_nfe"),
    (body(bough={"budget": {"max_token": 5}}), 400, "unknown_parameter", "bough.budget.max_token"),
    (body(bough={"stratgy": "single"}), 400, "unknown_parameter", "bough.stratgy"),
    (body(bough={"drafter": "oracle"}), 400, "unsupported_by_engine", "bough.drafter"),
    (body(bough={"drafter": 3}), 400, "invalid_type", "bough.drafter"),
    (body(bough={"schedule": {"kind": "x"}}), 400, "invalid_value", "bough.schedule.kind"),
    (body(bough={"schedule": {"kind": 3}}), 400, "invalid_type", "bough.schedule.kind"),
    (body(bough={"schedule": {}}), 400, "missing_required_parameter", "bough.schedule.kind"),
    (body(bough={"schedule": "annealed"}), 400, "invalid_type", "bough.schedule"),
    (annealed(tau_max=2.1), 400, "invalid_value", "bough.schedule.tau_max"),
    (annealed(tau_min=0), 400, "invalid_value", "bough.schedule.tau_min"),
    (annealed(tau_min=1.3), 400, "invalid_value", "bough.schedule.tau_min"),
    (annealed(decay_tokens=0), 400, "invalid_value", "bough.schedule.decay_tokens"),
    (annealed(decay_tokens="slow"), 400, "invalid_type", "bough.schedule.decay_tokens"),
    (annealed(warmup_tokens=-1), 400, "invalid_value", "bough.schedule.warmup_tokens"),
    (annealed(floor_ratio=0), 400, "invalid_value", "bough.schedule.floor_ratio"),
    (annealed(pilot=65), 400, "invalid_value", "bough.schedule.pilot"),
    (annealed(tau_mx=1), 400, "unknown_parameter", "bough.schedule.tau_mx"),
    (body(bough=[]), 400, "invalid_type", "bough"),
    (body(temperature=99), 400, "invalid_value", "temperature"),
    (body(temperature=-0.1), 400, "invalid_value", "temperature"),
    (body(temperature="hot"), 400, "invalid_type", "temperature"),
    (body(top_p=0), 400, "invalid_value", "top_p"),
    (body(top_p=1.01), 400, "invalid_value", "top_p"),
    (body(n=0), 400, "invalid_value", "n"),
    (body(n=65), 400, "invalid_value", "n"),
    (body(n=True), 400, "invalid_type", "n"),
    (body(max_tokens=-3), 400, "invalid_value", "max_tokens"),
    (body(max_completion_tokens=0), 400, "invalid_value", "max_completion_tokens"),
    (body(presence_penalty=3), 400, "invalid_value", "presence_penalty"),
    (body(frequency_penalty=-3), 400, "invalid_value", "frequency_penalty"),
    (body(top_logprobs=21, logprobs=True), 400, "invalid_value", "top_logprobs"),
    (body(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    (body(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias"),
    (body(logit_bias={"999999": 1}), 400, "invalid_value", "logit_bias"),
    (body(stop_token_ids=[3, 999999]), 400, "invalid_value", "stop_token_ids"),
    (body(stop=["a", ""]), 400, "invalid_value", "stop"),
    (body(stop=5), 400, "invalid_type", "stop"),
    (body(stop=["a", 5]), 400, "invalid_type", "stop[1]"),
    (body(stop=["a"] * 65), 400, "invalid_value", "stop"),
    (body(stop="x" * 100_000), 400, "invalid_value", "stop"),
    (body(stop=["x" * 600, "y" * 600]), 400, "invalid_value", "stop"),
    (body(bough={"return": {"trace": 5}}), 400, "invalid_type", "bough.return.trace"),
    (
        body(bough={"strategy": "self_consistency", "params": {"vote": 5}}),
        400,
        "invalid_type",
        "bough.params.vote",
    ),
    (
        body(bough={"strategy": "self_consistency", "params": {"vote": "most"}}),
        400,
        "invalid_value",
        "bough.params.vote",
    ),
    (body(messages=[{"role": 3, "content": "hi"}]), 400, "invalid_type", "messages[0].role"),
    (body(messages=[{"role": "user", "content": 3}]), 400, "invalid_type", "messages[0].content"),
    (
        body(messages=[{"role": "user", "content": [{"type": "text", "text": 3}]}]),
        400,
        "invalid_type",
        "messages[0].content[0].text",
    ),
    (
        body(messages=[{"role": "user", "content": ["hi"]}]),
        400,
        "invalid_type",
        "messages[0].content[0]",
    ),
    (body(seed="7"), 400, "invalid_type", "seed"),
    (body(seed=2**63), 400, "invalid_value", "seed"),
    (body(stream="yes"), 400, "invalid_type", "stream"),
    (body(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
    (body(max_token=3), 400, "unknown_parameter", "max_token"),
    (body(tools=[{"type": "function"}]), 400, "unsupported_parameter", "tools"),
    (body(tool_choice="required"), 400, "unsupported_parameter", "tool_choice"),
    (body(functions=[{"name": "f"}]), 400, "unsupported_parameter", "functions"),
    (body(function_call="auto"), 400, "unsupported_parameter", "function_call"),
    (body(audio={"voice": "x"}), 400, "unsupported_parameter", "audio"),
    (body(modalities=["text", "audio"]), 400, "unsupported_parameter", "modalities"),
    (body(web_search_options={}), 400, "unsupported_parameter", "web_search_options"),
    (
        body(response_format={"type": "json_object"}),
        400,
        "unsupported_parameter",
        "response_format",
    ),
    (body(messages=[]), 400, "invalid_value", "messages"),
    (body(messages="hi"), 400, "invalid_type", "messages"),
    (body(messages=["hi"]), 400, "invalid_type", "messages[0]"),
    (body(messages=[{"content": "hi"}]), 400, "missing_required_parameter", "messages[0].role"),
    (body(messages=[{"role": "user"}]), 400, "invalid_type", "messages[0].content"),
    (
        body(messages=[{"role": "wizard", "content": "hi"}]),
        400,
        "invalid_value",
        "messages[0].role",
    ),
    (
        body(messages=[{"role": "user", "content": "a"}, {"role": "tool", "content": "hi"}]),
        400,
        "unsupported_parameter",
        "messages[1].role",
    ),
    (
        body(messages=[{"role": "assistant", "content": "a", "tool_calls": [{}]}]),
        400,
        "unsupported_parameter",
        "messages[0].tool_calls",
    ),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        400,
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    (
        body(messages=[{"role": "user", "content": [{"type": "text"}]}]),
        400,
        "invalid_type",
        "messages[0].content[0].text",
    ),
    (body("x" * 5000), 400, "context_length_exceeded", "messages"),
    ({"messages": []}, 400, "missing_required_parameter", "model"),
    ({"model": "echo"}, 400, "missing_required_parameter", "messages"),
]


@pytest.mark.parametrize(("sent", "status", "code", "param"), ROWS)
@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
async def test_refused_before_anything_is_sent(
    client: httpx.AsyncClient,
    sent: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    is_stream: bool,
) -> None:
    sent = {"stream": True, **sent} if is_stream else sent
    if code == "invalid_value" and param == "stream_options" and is_stream:
        sent = {**sent, "stream": False}
    response = await client.post(CHAT, json=sent)
    check(response, status, code, param)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"model": "caf\xe9", "messages": []}', "invalid_json"),
        (
            b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "invalid_json",
        ),
        (b'{"model":"echo","bough":{"params":' + b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b"7", "invalid_type"),
    ],
)
async def test_bodies_that_are_no_request(
    client: httpx.AsyncClient, data: bytes, code: str
) -> None:
    check(await client.post(CHAT, content=data), 400, code, None)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
async def test_numbers_that_json_does_not_have(client: httpx.AsyncClient, number: str) -> None:
    data = json.dumps(body(temperature=1234)).replace("1234", number)
    check(await client.post(CHAT, content=data.encode()), 400, "invalid_value", "temperature")


async def test_body_over_the_limit(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body("x" * 5_000_000))
    check(response, 413, "body_too_large", None)


async def test_body_over_the_limit_in_pieces(client: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(64):
            yield b" " * 1_000_000

    check(await client.post(CHAT, content=pieces()), 413, "body_too_large", None)


@pytest.mark.parametrize("name", ["field", "param"])
async def test_refusals_do_not_repeat_everything(client: httpx.AsyncClient, name: str) -> None:
    long = "x" * 100_000
    sent = body(**{long: 1}) if name == "field" else body(bough={"params": {long: 1}})
    error = (await client.post(CHAT, json=sent)).json()["error"]
    assert error["code"] == "unknown_parameter"
    assert len(error["message"]) <= 1000
    assert len(error["param"]) <= 200


async def test_near_matches_are_named(client: httpx.AsyncClient) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        (body(model="ecko"), "'echo'"),
        (body(bough={"strategy": "best_of"}), "'best_of_n'"),
        (body(bough={"reward_model": "verify"}), "'verifier'"),
        (body(bough={"strategy": "best_of_n", "params": {"widht": 1}}), "'width'"),
        (body(max_token=3), "'max_tokens'"),
        (body(bough={"bugdet": {}}), "'budget'"),
    ]
    for sent, meant in asked:
        response = await client.post(CHAT, json=sent)
        assert meant in response.json()["error"]["message"]


async def test_a_strategy_that_judges_needs_a_judge() -> None:
    settings = echo_settings(models={"echo": {"engine": {"kind": "echo"}}}, reward_models={})
    async with serving(settings) as app, client_of(app) as client:
        response = await client.post(CHAT, json=body(bough={"strategy": "best_of_n"}))
        check(response, 400, "reward_model_required", "bough.reward_model")


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("field", "strategy"), [("logprobs", "single"), ("ignore_eos", "single"), ("top_k", "beam")]
)
async def test_options_that_an_engine_lacks_are_a_status(
    app: FastAPI, client: httpx.AsyncClient, field: str, strategy: str, is_stream: bool
) -> None:
    catalog = app.state.services.catalog
    engine = Particular("echo", EchoOptions())
    catalog.models["echo"] = replace(catalog.models["echo"], engine=engine)
    value: Any = 3 if field == "top_k" else True
    sent = body(stream=is_stream, bough={"strategy": strategy}, **{field: value})
    check(await client.post(CHAT, json=sent), 400, "unsupported_by_engine", field)
    assert (await client.post(CHAT, json=body(top_k=3))).status_code == 200


class Particular(EchoEngine):
    """Tells no log-probabilities, bans no ids, and takes top_k for whole answers only."""

    def __init__(self, model_id: str, options: EchoOptions) -> None:
        super().__init__(model_id, options)
        able = self.info.capabilities - {Capability.LOGPROBS}
        self.info = replace(self.info, capabilities=able)

    def check_sampling(self, how: Sampling) -> None:
        super().check_sampling(how)
        if how.ban_ids:
            raise UnsupportedByEngine("ban_ids", self.info.model_id)
        if how.top_k and how.boundaries:
            raise UnsupportedByEngine("top_k", self.info.model_id)


async def test_what_no_engine_could_honour_is_listed(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    engine = app.state.services.catalog.models["echo"].engine
    engine.info = replace(engine.info, eos_ids=frozenset())
    reply = (await client.post(CHAT, json=body(ignore_eos=True, max_tokens=3))).json()
    assert reply["bough"]["ignored"] == ["ignore_eos"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/ecko", 404, "model_not_found"),
        ("GET", "/v1/models/echo:nothing", 404, "strategy_not_found"),
        ("GET", "/v1/runs/run_0/tree", 404, "run_not_found"),
        ("GET", "/v1/runs/run_0/events", 404, "run_not_found"),
        ("GET", f"/v1/runs/run_{'0' * 3000}/tree", 404, "run_not_found"),
        ("GET", f"/v1/runs/run_{'0' * 3000}/events", 404, "run_not_found"),
        ("GET", "/v1/runs/%00/tree", 404, "run_not_found"),
        ("GET", "/v1/runs/run_0/events?after=x", 400, "invalid_type"),
        ("GET", "/v1/runs/run_0/events?after=-7", 400, "invalid_value"),
        ("GET", "/ui/../app.py", 404, "not_found"),
    ],
)
async def test_routes(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def check(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    """The error object is whole, names the field, and says nothing about the machine."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 1200
    for leak in ("Traceback", ".py", "/work", "site-packages", "pydantic"):
        assert leak not in error["message"]
    assert response.headers["x-request-id"]
