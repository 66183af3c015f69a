"""`bough.drafter` over HTTP: the same answers, whatever the strategy, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from engines.base import Capability, Sampling
from engines.echo import EchoEngine, EchoOptions
from engines.errors import UnsupportedByEngine
from models.registry import bundled
from search.plugins import load
from search.registry import needs_next_rewards
from tests.api.harness import (
    CHAT,
    body,
    chunks_of,
    claimed_pages,
    client_of,
    content_of,
    echo_settings,
    serving,
)

PROBLEM = "Tom has 12 apples. He buys 7 more and then gives 5 away. How many apples does Tom have?"

has_sapling = pytest.mark.skipif(len(bundled()) < 2, reason="no generator and judge are bundled")
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")  # where the saplings are


def asked(strategy: str, drafter: str | None, **fields: Any) -> dict[str, Any]:
    kind = load("bough.strategies")[strategy]
    params = {"width": 4} if "width" in kind.Params.model_fields else {}
    bough = {"strategy": strategy, "params": params, "drafter": drafter}
    messages = [{"role": "user", "content": PROBLEM}]
    given = {"model": "sapling-sums", "messages": messages, "seed": 7, "max_tokens": 80}
    return {**given, "bough": bough, **fields}


async def reply(client: httpx.AsyncClient, sent: dict[str, Any]) -> dict[str, Any]:
    got: dict[str, Any] = (await client.post(CHAT, json=sent)).json()
    return got


@has_sapling
@pytest.mark.slow
@on_the_modules_loop
async def test_every_strategy_says_the_same_with_a_drafter(saplings: FastAPI) -> None:
    async with client_of(saplings) as client:
        carried = [one["name"] for one in (await client.get("/v1/strategies")).json()["data"]]
        for strategy in carried:
            kind = load("bough.strategies")[strategy]
            if needs_next_rewards(kind) or "denoise" in kind.requires:
                continue
            plain = await reply(client, asked(strategy, None))
            drafted = await reply(client, asked(strategy, "adaptive"))
            assert drafted["choices"] == plain["choices"], strategy
            for name in ("generated_tokens", "candidates", "reward_calls"):
                assert drafted["bough"]["spent"][name] == plain["bough"]["spent"][name], strategy
            drafts = drafted["bough"]["drafts"]
            assert 0 <= drafts["accepted"] <= drafts["drafted"]
        assert await claimed_pages(saplings) == 0


@has_sapling
@pytest.mark.slow
@on_the_modules_loop
async def test_draft_verify_is_single_and_counts_its_drafts(saplings: FastAPI) -> None:
    async with client_of(saplings) as client:
        single = await reply(client, asked("single", None, temperature=0))
        sent = asked("draft_verify", None, temperature=0)
        accepted = 0
        for _ in range(8):  # it learns; when it begins depends on what steps cost here
            drafted = await reply(client, sent)
            assert drafted["choices"] == single["choices"]
            accepted += drafted["bough"].get("drafts", {"accepted": 0})["accepted"]
        streamed = await client.post(CHAT, json={**sent, "stream": True})
        assert content_of(chunks_of(streamed.text)) == single["choices"][0]["message"]["content"]
        text = (await client.get("/metrics")).text
        [line] = [
            one
            for one in text.splitlines()
            if one.startswith('bough_accepted_tokens_total{strategy="draft_verify"}')
        ]
        assert float(line.split()[-1]) >= accepted


@has_sapling
@pytest.mark.slow
@on_the_modules_loop
async def test_an_unknown_drafter_is_refused_with_those_there_are(saplings: FastAPI) -> None:
    async with client_of(saplings) as client:
        error = (await reply(client, asked("beam", "oracle")))["error"]
        assert error["code"] == "unsupported_by_engine"
        assert error["param"] == "bough.drafter"
        assert "adaptive" in error["message"]
        params = asked("draft_verify", None)
        params["bough"]["params"] = {"drafter": "oracle"}
        assert (await reply(client, params))["error"]["code"] == "unsupported_by_engine"


class Undrafted(EchoEngine):
    """An engine that lacks drafters."""

    def __init__(self) -> None:
        super().__init__("echo", EchoOptions())
        has = self.info.capabilities - {Capability.DRAFTER}
        self.info = replace(self.info, capabilities=has)

    def check_sampling(self, how: Sampling) -> None:
        if how.drafter is not None:
            raise UnsupportedByEngine("drafter", "echo", "leave it out")


async def test_an_engine_without_drafters_says_so() -> None:
    async with serving(echo_settings()) as app, client_of(app) as client:
        models = app.state.services.catalog.models
        models["echo"] = replace(models["echo"], engine=Undrafted())
        error = (await reply(client, body(bough={"drafter": "adaptive"})))["error"]
        assert error["code"] == "unsupported_by_engine"
        assert error["param"] == "bough.drafter"
        error = (await reply(client, body(bough={"strategy": "draft_verify"})))["error"]
        assert error["code"] == "unsupported_by_engine"
        assert error["param"] == "bough.strategy"


async def test_echo_drafts_what_it_echoes(client: httpx.AsyncClient) -> None:
    sent = body("abcabcabcabcabcabcabc", bough={"drafter": "ngram"})
    got = await reply(client, sent)
    assert got["choices"][0]["message"]["content"] == "abcabcabcabcabcabcabc"
    drafts = got["bough"]["drafts"]
    assert drafts["accepted"] > 5
    steps = got["bough"]["spent"]["generated_tokens"] - drafts["accepted"]
    assert drafts["accepted_per_step"] == pytest.approx(drafts["accepted"] / steps)


async def test_accepted_tokens_by_draft_steps_are_the_mean(client: httpx.AsyncClient) -> None:
    undrafted = await reply(client, body("abcabcabcabc"))
    assert undrafted["bough"]["spent"]["generated_tokens"] > 1
    got = [
        await reply(client, body(text, bough={"drafter": "ngram"}))
        for text in ("abcabcabcabcabcabcabc", "no draft")
    ]
    accepted = sum(one["bough"]["drafts"]["accepted"] for one in got)
    generated = sum(one["bough"]["spent"]["generated_tokens"] for one in got)
    lines = (await client.get("/metrics")).text.splitlines()
    seen = {
        line.partition("{")[0]: float(line.split()[-1])
        for line in lines
        if '{strategy="single"}' in line
    }
    assert accepted > 5
    assert seen["bough_accepted_tokens_total"] == accepted
    assert seen["bough_draft_steps_total"] == generated - accepted
