"""The bundled models behind the whole server, as `bough serve` without arguments serves them."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from models.registry import bundled
from search.registry import strategy_class
from tests.api.harness import CHAT, chunks_of, claimed_pages, client_of, content_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(len(bundled()) < 2, reason="no generator and judge are bundled"),
]

PROBLEM = "Tom has 12 apples. He buys 7 more and then gives 5 away. How many apples does Tom have?"


async def test_every_strategy_answers_streamed_and_not(saplings: FastAPI) -> None:
    async with client_of(saplings) as client:
        model = (await client.get("/v1/models")).json()["data"][0]
        assert model["id"] == "sapling-sums"
        assert model["bough"]["reward_model"] == "sapling-prm"
        for strategy in (await client.get("/v1/strategies")).json()["data"]:
            has_width = "width" in strategy["params"]["properties"]
            sent = {
                "model": model["id"],
                "messages": [{"role": "user", "content": PROBLEM}],
                "seed": 7,
                "max_tokens": 120,
                "bough": {
                    "strategy": strategy["name"],
                    "params": {"width": 4} if has_width else {},
                },
            }
            whole = (await client.post(CHAT, json=sent)).json()
            if "denoise" in strategy_class(strategy["name"]).requires:
                assert whole["error"]["code"] == "unsupported_by_engine"
                continue
            if getattr(strategy_class(strategy["name"]), "needs_next_rewards", False):
                assert whole["error"]["code"] == "reward_model_required"
                continue
            content = whole["choices"][0]["message"]["content"]
            assert content
            assert whole["usage"]["prompt_tokens"] > 0
            streamed = await client.post(CHAT, json={**sent, "stream": True})
            assert content_of(chunks_of(streamed.text)) == content
            assert await claimed_pages(saplings) == 0


async def test_any_utf8_is_taken_and_too_much_is_refused(saplings: FastAPI) -> None:
    async with client_of(saplings) as client:
        sent = {"model": "sapling-sums", "max_tokens": 8}
        odd = [{"role": "user", "content": "ß漢😀\u0000\u202e"}]
        response = await client.post(CHAT, json={**sent, "messages": odd})
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"]
        long = [{"role": "user", "content": "7 " * 20_000}]
        refused = await client.post(CHAT, json={**sent, "messages": long})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert await claimed_pages(saplings) == 0
