"""Trees of denoising rollouts over the wire: what is spent, reused, shown, cached and refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.api.harness import (
    CHAT,
    chunks_of,
    client_of,
    content_of,
    diffusion_settings,
    serving,
)
from tests.diffusion_models import write_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), "llada")


@pytest_asyncio.fixture
async def client(directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(diffusion_settings(directory)) as app, client_of(app) as opened:
        yield opened


def asked(strategy: str, params: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    bough = {"strategy": strategy, "params": params or {}, **fields.pop("bough", {})}
    messages = [{"role": "user", "content": "2+2"}]
    return {"model": "tiny", "messages": messages, "bough": bough, **fields}


async def reply(client: httpx.AsyncClient, sent: dict[str, Any]) -> dict[str, Any]:
    got = await client.post(CHAT, json=sent)
    assert got.status_code == 200, got.text
    found: dict[str, Any] = got.json()
    return found


async def test_the_ledger_and_the_second_request(client: httpx.AsyncClient) -> None:
    budget = {"budget": {"max_nfe": 40}}
    sent = asked("dts_star", {"reuse": True}, seed=4, bough=budget)
    first = await reply(client, sent)
    spent, tree = first["bough"]["spent"], first["bough"]["tree"]
    assert 0 < spent["nfe"] <= 40
    assert first["usage"]["bough"]["generator"]["nfe"] == spent["nfe"]
    assert (tree["reused_nodes"], tree["reused_nfe"]) == (0, 0)
    assert first["bough"]["stop_reason"] == "budget"
    second = (await reply(client, sent))["bough"]
    # states that were drawn twice are one node of the stored tree
    assert 0.8 * tree["nodes"] < second["tree"]["reused_nodes"] < tree["nodes"]
    assert second["tree"]["reused_nfe"] == spent["nfe"]
    metrics = (await client.get("/metrics")).text
    total = spent["nfe"] + second["spent"]["nfe"]
    assert f'bough_nfe_total{{strategy="dts_star"}} {total}.0' in metrics


@pytest.mark.parametrize("strategy", ["dts", "dts_star", "fk_steering", "best_of_n", "single"])
async def test_streamed_and_not(client: httpx.AsyncClient, strategy: str) -> None:
    params = {} if strategy == "single" else {"width": 3}
    sent = asked(strategy, params, seed=4, bough={"budget": {"max_nfe": 64}, "cache": False})
    whole = await reply(client, sent)
    streamed = await client.post(CHAT, json={**sent, "stream": True})
    assert content_of(chunks_of(streamed.text)) == whole["choices"][0]["message"]["content"]


async def test_trees_are_never_answered_from_the_cache(client: httpx.AsyncClient) -> None:
    sent = asked("dts_star", {"samples": 3}, seed=4)
    first, again = await reply(client, sent), await reply(client, sent)
    assert first["bough"]["cached"] is again["bough"]["cached"] is False
    assert first["choices"] == again["choices"]
    going = asked("dts_star", {"samples": 3, "reuse": True}, seed=4)
    reused = [(await reply(client, going))["bough"]["tree"]["reused_nfe"] for _ in range(3)]
    assert reused[0] == 0 < reused[1] < reused[2]
    plain = asked("best_of_n", {"width": 2}, seed=4)
    assert not (await reply(client, plain))["bough"]["cached"]
    assert (await reply(client, plain))["bough"]["cached"]


async def test_the_tree_shows_the_masks(client: httpx.AsyncClient) -> None:
    sent = asked("dts_star", {"samples": 2, "width": 1}, seed=4)
    run_id = (await reply(client, sent))["bough"]["run_id"]
    nodes = (await client.get(f"/v1/runs/{run_id}/tree")).json()["nodes"]
    assert "shown" not in nodes[0]
    begun = nodes[1]
    assert begun["shown"].count("\u2591") == begun["steps"] - begun["step"] > 0
    assert all("\u2591" not in one["shown"] for one in nodes[1:] if one["finish"] is not None)


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ({"model": "echo"}, "unsupported_by_engine", "bough.strategy"),
        ({"temperature": 0}, "invalid_value", "temperature"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"bough": {"params": {"kernel": "mdml"}}}, "invalid_value", "bough.params.kernel"),
        ({"bough": {"params": {"steps": 0}}}, "invalid_value", "bough.params.steps"),
        ({"bough": {"params": {"branch_levels": [99]}}}, "invalid_value", None),
        ({"bough": {"params": {"lambda": -1}}}, "invalid_value", "bough.params.lambda"),
        ({"bough": {"params": {"lambda_": 1}}}, "unknown_parameter", "bough.params.lambda_"),
        ({"bough": {"budget": {"max_nfe": 3}}}, "budget_exhausted", "bough.budget.max_nfe"),
    ],
)
async def test_bad_input(
    client: httpx.AsyncClient, sent: dict[str, Any], code: str, param: str | None
) -> None:
    bough = sent.pop("bough", {}) if "bough" in sent else {}
    made = asked("dts_star", **{**sent, "bough": bough})
    got = await client.post(CHAT, json=made)
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (400, code), error
    assert error["param"] == (param or "bough.params.branch_levels")


@pytest.mark.parametrize("stream", [False, True])
async def test_masks_in_a_prompt_are_refused_before_a_stream_begins(
    tmp_path: Path, stream: bool
) -> None:
    settings = diffusion_settings(write_tiny(tmp_path, "llada", mask_token_id=256))
    messages = [{"role": "user", "content": "fill <|pad|> in"}]
    async with serving(settings) as app, client_of(app) as client:
        got = await client.post(CHAT, json={**asked("dts"), "messages": messages, "stream": stream})
    assert got.status_code == 400
    assert got.json()["error"]["param"] == "messages"


async def test_the_strategies_are_listed_with_their_model(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/strategies")).json()["data"]
    by_name = {one["name"]: one for one in listed}
    for name in ("dts", "dts_star", "fk_steering"):
        assert by_name[name]["requires"] == ["denoise"]
        assert by_name[name]["models"] == ["tiny"]
    schema = by_name["dts_star"]["params"]["properties"]
    assert {"lambda", "c_uct", "capacity", "reuse"} <= set(schema)
    assert '{"const": "inf"}' in json.dumps(schema["lambda"])
