"""What the SDK does not look at: the `bough` object, ignored fields, seeds, doors, limits."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.harness import (
    CHAT,
    HELLO,
    body,
    chunks_of,
    claimed_pages,
    client_of,
    content_of,
    echo_settings,
    noisy_settings,
    serving,
)

BOUGH = {
    "run_id",
    "strategy",
    "resolved",
    "stop_reason",
    "seed",
    "score",
    "cached",
    "spent",
    "tree",
    "candidates",
    "ignored",
}
SPENT = {"generated_tokens", "candidates", "reward_calls", "reward_tokens", "nfe", "wall_ms"}
STRATEGIES = ("single", "best_of_n", "self_consistency", "beam", "ets")
TREE = {
    *("nodes", "depth", "unique_tokens", "logical_tokens", "cached_tokens", "peak_kv_tokens"),
    *("reused_nodes", "reused_nfe"),
}


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def test_every_field_of_the_reply(client: httpx.AsyncClient) -> None:
    reply = await ask(client, bough={"strategy": "best_of_n", "params": {"width": 2}})
    assert set(reply["bough"]) == BOUGH
    assert set(reply["bough"]["spent"]) == SPENT
    assert set(reply["bough"]["tree"]) == TREE
    assert reply["bough"]["tree"]["logical_tokens"] >= reply["bough"]["tree"]["unique_tokens"] > 0
    assert reply["bough"]["cached"] is False


async def test_a_drawn_seed_is_reported_and_repeats_the_answer() -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        first = await ask(client, max_tokens=20)
        seed = first["bough"]["seed"]
        again = await ask(client, max_tokens=20, seed=seed)
        other = await ask(client, max_tokens=20, seed=seed + 1)
    assert again["choices"] == first["choices"]
    assert other["choices"] != first["choices"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(3))
async def test_streamed_text_is_the_unstreamed_text(strategy: str, seed: int) -> None:
    async with serving(noisy_settings()) as app, client_of(app) as client:
        fields = {"seed": seed, "max_tokens": 24, "bough": {"strategy": strategy}, "stop": ["4"]}
        whole = await ask(client, **fields)
        streamed = await client.post(CHAT, json=body(stream=True, **fields))
        assert await claimed_pages(app) == 0
    assert content_of(chunks_of(streamed.text)) == whole["choices"][0]["message"]["content"]
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_order_of_a_stream(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True}
    response = await client.post(CHAT, json=body("ab", stream=True, stream_options=options))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(": ")
    chunks = chunks_of(response.text)
    kinds = []
    for chunk in chunks:
        choice = chunk["choices"][0] if chunk["choices"] else None
        if choice is None:
            kinds.append("usage" if chunk.get("usage") else "bough")
        elif choice["finish_reason"]:
            kinds.append("finish")
        else:
            kinds.append("role" if "role" in choice["delta"] else "text")
    assert kinds == ["role", "text", "text", "finish", "bough", "usage"]
    assert set(chunks[-2]["bough"]) == BOUGH


async def test_without_include_usage_there_is_no_usage(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(stream=True))
    chunks = chunks_of(response.text)
    assert all("usage" not in chunk for chunk in chunks)
    assert "bough" in chunks[-1]


async def test_events_in_the_stream_only_on_request(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(stream=True, bough={"return": {"events": True}}))
    chunks = chunks_of(response.text)
    found = [chunk["bough"]["event"] for chunk in chunks if "event" in chunk.get("bough", {})]
    assert [event["number"] for event in found] == list(range(len(found)))
    assert (found[0]["kind"], found[-1]["kind"]) == ("grown", "ended")
    assert content_of(chunks) == HELLO
    assert all("events" not in chunk.get("bough", {}) for chunk in chunks)  # each once
    plain = await client.post(CHAT, json=body(stream=True))
    assert '"event"' not in plain.text


async def test_trace_and_events_in_the_reply(client: httpx.AsyncClient) -> None:
    full = await ask(client, bough={"return": {"trace": "full", "events": True}})
    assert [node["text"] for node in full["bough"]["trace"]["nodes"]] == ["", HELLO]
    assert full["bough"]["events"][-1]["kind"] == "ended"
    summary = await ask(client, bough={"return": {"trace": "summary"}})
    nodes = summary["bough"]["trace"]["nodes"]
    assert [node["state"] for node in nodes][1:] == ["chosen"]
    assert all("text" not in node for node in nodes)


IGNORED: dict[str, Any] = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "reasoning_effort": "high",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": False,
    "user": "u",
    "verbosity": "low",
}


async def test_what_is_not_honoured_is_listed(client: httpx.AsyncClient) -> None:
    reply = await ask(client, **IGNORED)
    assert sorted(reply["bough"]["ignored"]) == sorted(IGNORED)
    messages = [{"role": "user", "content": "hi", "name": "ann"}]
    reply = await ask(client, messages=messages, max_tokens=5, max_completion_tokens=1)
    assert reply["bough"]["ignored"] == ["messages[0].name", "max_tokens"]
    assert reply["choices"][0]["message"]["content"] == "h"
    assert reply["choices"][0]["finish_reason"] == "length"
    reply = await ask(client, n=3)
    assert reply["bough"]["ignored"] == ["n"]
    assert len(reply["choices"]) == 1


async def test_nulls_and_values_that_ask_for_nothing(client: httpx.AsyncClient) -> None:
    fields = ["temperature", "top_p", "n", "stop", "seed", "tools", "max_tokens", "user", "bough"]
    reply = await ask(
        client,
        **dict.fromkeys(fields),
        response_format={"type": "text"},
        tool_choice="none",
        modalities=["text"],
        functions=[],
    )
    assert reply["bough"]["ignored"] == []


async def test_content_parts_and_roles(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "ß漢"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "hm", "refusal": None, "tool_calls": None},
        {"role": "user", "content": parts},
    ]
    reply = await ask(client, messages=messages)
    assert reply["choices"][0]["message"]["content"] == "aß漢"


async def test_stop_strings_and_biases(client: httpx.AsyncClient) -> None:
    assert (await ask(client, stop="4"))["choices"][0]["message"]["content"] == "2+2\nis "
    assert (await ask(client, stop=["s", "+2"]))["choices"][0]["message"]["content"] == "2"
    banned = await ask(client, logit_bias={str(ord("2")): -100}, max_tokens=1, temperature=0)
    assert banned["choices"][0]["message"]["content"] != "2"


async def test_ignore_eos_and_min_tokens(client: httpx.AsyncClient) -> None:
    reply = await ask(client, text="ab", ignore_eos=True, max_tokens=5)
    assert reply["choices"][0]["message"]["content"] == "ababa"
    reply = await ask(client, text="ab", min_tokens=3, max_tokens=5, temperature=0)
    assert reply["choices"][0]["message"]["content"].startswith("aba")


async def test_doors_in_their_order() -> None:
    model = {
        "engine": {"kind": "echo"},
        "reward_model": "constant",
        "strategy": "best_of_n",
        "params": {"width": 2},
    }
    async with serving(echo_settings(models={"echo": model})) as app, client_of(app) as client:
        assert (await ask(client))["bough"]["spent"]["candidates"] == 2
        wider = await ask(client, bough={"params": {"width": 4}})
        assert wider["bough"]["spent"]["candidates"] == 4
        suffix = await ask(client, model="echo:single")
        assert suffix["bough"]["resolved"] == "single"
        both = await ask(client, model="echo:best_of_n", bough={"strategy": "single"})
        assert both["bough"]["resolved"] == "single"


async def test_what_a_strategy_decided_is_said() -> None:
    settings = echo_settings(cache={"responses": True})
    async with serving(settings) as app, client_of(app) as client:
        for _ in range(2):  # the second comes from the cache
            asked = {"strategy": "auto", "params": {"look": 4}}
            response = await client.post(CHAT, json=body(bough=asked, seed=7))
            assert response.headers["x-bough-strategy"] == "auto"
            told = response.json()["bough"]
            assert told["strategy"] == "auto"
            assert told["resolved"].startswith("auto: stop, ")
        assert told["cached"]


async def test_a_width_that_nobody_asked_for_stays_within_the_limit() -> None:
    model = {
        "engine": {"kind": "echo"},
        "reward_model": "constant",
        "strategy": "best_of_n",
        "params": {"width": 5},
    }
    settings = echo_settings(models={"echo": model}, limits={"max_width": 3})
    async with serving(settings) as app, client_of(app) as client:
        by_settings = await ask(client)
        by_default = await ask(client, bough={"strategy": "self_consistency"})
        named = await ask(client, bough={"params": {"width": 2}})
        widths = [one["bough"]["spent"]["candidates"] for one in (by_settings, by_default, named)]
        assert widths == [3, 3, 2]
        refused = await client.post(CHAT, json=body(bough={"params": {"width": 4}}))
        assert refused.json()["error"]["param"] == "bough.params.width"


async def test_an_exact_id_goes_before_a_suffix() -> None:
    engine = {"engine": {"kind": "echo"}, "reward_model": "constant"}
    models = {"echo": engine, "echo:best_of_n": engine, "org/a:b": engine}
    async with serving(echo_settings(models=models)) as app, client_of(app) as client:
        assert (await ask(client, model="echo:best_of_n"))["bough"]["resolved"] == "single"
        twice = await ask(client, model="echo:best_of_n:best_of_n")
        assert twice["bough"]["resolved"] == "best_of_n"
        assert (await client.get("/v1/models/org/a:b")).json()["id"] == "org/a:b"


async def test_a_budget_cuts_the_run_short(client: httpx.AsyncClient) -> None:
    reply = await ask(client, bough={"budget": {"max_tokens": 4}})
    assert reply["choices"][0]["message"]["content"] == HELLO[:4]
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["bough"]["stop_reason"] == "budget"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "budget", [{"max_reward_calls": 0}, {"max_candidates": 1}, {"max_tokens": 1}], ids=str
)
async def test_a_tiny_budget_still_gives_an_answer(
    noisy: httpx.AsyncClient, strategy: str, budget: dict[str, int]
) -> None:
    reply = await ask(noisy, seed=1, max_tokens=20, bough={"strategy": strategy, "budget": budget})
    assert reply["choices"][0]["message"]["content"]
    spent = reply["bough"]["spent"]
    assert spent["reward_calls"] <= budget.get("max_reward_calls", 1)
    assert spent["candidates"] <= budget.get("max_candidates", 16)
    assert spent["generated_tokens"] <= budget.get("max_tokens", 1000)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_prompt_is_rendered_once_and_a_long_one_beside_the_event_loop(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    engine = app.state.services.catalog.models["echo"].engine
    threads: list[threading.Thread] = []
    render = engine.render

    def counted(*given: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return render(*given, **options)

    monkeypatch.setattr(engine, "render", counted)
    monkeypatch.setattr(engine, "info", replace(engine.info, context_tokens=10**6))
    text = "x" * size
    await ask(client, messages=[{"role": "user", "content": text}], max_tokens=2)
    (thread,) = threads
    assert (thread is threading.current_thread()) == (size == 10)


async def test_a_request_takes_no_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", refuse)
    monkeypatch.setattr("fastapi.routing.run_in_threadpool", refuse)
    assert (await ask(client))["choices"]
    assert (await client.get("/v1/models")).status_code == 200


async def test_request_ids(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(), headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    odd = await client.get("/health", headers={"X-Request-Id": "a b\tc"})
    assert odd.headers["x-request-id"] not in ("", "a b\tc")


async def test_a_judge_that_is_never_asked_is_listed(client: httpx.AsyncClient) -> None:
    judged = {"reward_model": "verifier", "params": {"width": 2}}
    for strategy, ignored in (("best_of_n", []), ("self_consistency", ["bough.reward_model"])):
        reply = await ask(client, bough={"strategy": strategy, **judged})
        assert reply["bough"]["ignored"] == ignored


async def test_bytes_of_a_token_are_its_own_or_none(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "aé"}]
    reply = await ask(client, messages=messages, logprobs=True)
    rows = reply["choices"][0]["logprobs"]["content"]
    assert [row["bytes"] for row in rows] == [[97], None, None]


async def test_every_refusal_is_counted(client: httpx.AsyncClient) -> None:
    for sent in (b"{", json.dumps(body(model="x")).encode(), json.dumps(body(n=65)).encode()):
        await client.post(CHAT, content=sent)
    await client.post(CHAT, json=body(bough={"params": {"width": 2}}))
    lines = (await client.get("/metrics")).text.splitlines()
    for status, strategy in (
        ("invalid_json", "unresolved"),
        ("model_not_found", "unresolved"),
        ("invalid_value", "unresolved"),
        ("unknown_parameter", "single"),
    ):
        assert f'bough_requests_total{{status="{status}",strategy="{strategy}"}} 1.0' in lines


async def test_health_and_metrics(client: httpx.AsyncClient) -> None:
    for path in ("/", "/health", "/health/live", "/health/ready"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    for path in ("/health", "/health/live"):
        assert (await client.get(path)).json() == {"status": "ok", "dead": []}
    ready = await client.get("/health/ready")
    assert ready.json() == {"status": "ok", "models": ["echo"], "gone": [], "store": "ok"}
    await ask(client, bough={"strategy": "best_of_n", "params": {"width": 2}})
    await client.post(CHAT, json=body(stream=True))
    text = (await client.get("/metrics")).text
    for line in (
        'bough_requests_total{status="ok",strategy="best_of_n"} 1.0',
        'bough_candidates_total{strategy="best_of_n"} 2.0',
        'bough_reward_calls_total{strategy="best_of_n"} 1.0',
        'bough_kv_pages{engine="echo",state="claimed"} 0.0',
        'bough_kv_pages{engine="echo",state="free"} 0.0',
        'bough_kv_pages{engine="echo",state="cached"} 0.0',
        'bough_kv_pages{engine="verifier",state="claimed"} 0.0',
        'bough_runs{state="running"} 0.0',
        'bough_first_token_seconds_count{strategy="single"} 1.0',
    ):
        assert line in text.splitlines()


async def test_strategies(client: httpx.AsyncClient) -> None:
    reply = (await client.get("/v1/strategies")).json()
    assert reply["object"] == "list"
    by_name = {strategy["name"]: strategy for strategy in reply["data"]}
    assert set(by_name) >= set(STRATEGIES)
    best = by_name["best_of_n"]
    assert best["description"]
    assert best["params"]["properties"]["width"]["type"] == "integer"
    assert isinstance(best["requires"], list)


async def test_page(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == "default-src 'self'"
    assert "//" not in page.text.replace("</", "")
    for name in ("app.js", "tree.js", "style.css", "icon.svg"):
        assert f"/ui/{name}" in page.text or name == "icon.svg"
        assert (await client.get(f"/ui/{name}")).status_code == 200
