"""Saffron over the wire: tiny random models, a judge of tokens and one of outcomes beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

pytest.importorskip("torch", reason="needs the embedded engine")

from search.registry import strategy_class
from server.settings import Settings
from tests.api.harness import CHAT, claimed_pages, client_of, serving
from tests.contract.tiny_llama import write_tiny_llama
from tests.contract.tiny_multifurcation import write_multifurcation
from tests.every_strategy import every_strategy

SMALL = {"device": "cpu", "kv_tokens": 2048}
ASKED = {"role": "user", "content": "Tell me the code word."}
BEGUN = {"role": "assistant", "content": "Sure: it"}
BOUGH = {"strategy": "saffron", "params": {"width": 3}}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    mrm = write_multifurcation(tmp_path_factory.mktemp("saffron_wire"), layers=1)
    other = write_tiny_llama(tmp_path_factory.mktemp("saffron_other"))
    return {"mrm": str(mrm), "base": str(mrm.parent / "base"), "other": str(other)}


def settings_of(directories: dict[str, str], mrms: int = 1) -> Settings:
    def model(name: str) -> dict[str, Any]:
        engine = {"kind": "embedded", "model": directories[name], "options": SMALL}
        return {"engine": engine, "reward_model": "verifier"}

    options = {**SMALL, "base": directories["base"]}
    mrm = {"kind": "multifurcation", "model": directories["mrm"], "options": options}
    judges = {"verifier": {"kind": "verifier"}, "constant": {"kind": "constant"}}
    return Settings(
        models={"tiny": model("base"), "other": model("other")},
        reward_models={**judges, **{f"mrm{at}": mrm for at in range(mrms)}},
    )


@pytest.fixture
async def app(directories: dict[str, str]) -> AsyncIterator[FastAPI]:
    async with serving(settings_of(directories)) as served:
        yield served
        assert await claimed_pages(served) == 0


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as made:
        yield made


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    asked = {"model": "tiny", "messages": [ASKED, BEGUN], "max_tokens": 6, "seed": 1}
    return await client.post(CHAT, json={**asked, "bough": BOUGH, **fields})


async def test_nothing_but_the_strategy_need_be_named(client: httpx.AsyncClient) -> None:
    """The model's own judge is of another kind: the one that fits is taken."""
    got = (await ask(client, bough={"strategy": "saffron"})).json()
    ledger = got["usage"]["bough"]["reward_model"]
    assert (ledger["model"], got["bough"]["resolved"]) == ("mrm0", "saffron")
    assert ledger["calls"] > 0
    suffixed = (await ask(client, model="tiny:saffron", bough=None)).json()
    assert suffixed["choices"] == got["choices"]
    other = await ask(client, model="other")
    assert other.json()["error"]["code"] == "reward_model_required"


async def test_lists_say_who_carries_it(client: httpx.AsyncClient) -> None:
    models = {one["id"]: one["bough"] for one in (await client.get("/v1/models")).json()["data"]}
    assert models["tiny:saffron"]["reward_model"] == "mrm0"
    assert models["tiny:beam"]["reward_model"] == models["tiny"]["reward_model"] == "verifier"
    assert "other:beam" in models
    assert "other:saffron" not in models
    listed = (await client.get("/v1/strategies")).json()["data"]
    carriers = {one["name"]: one["models"] for one in listed}
    assert (carriers["saffron"], carriers["beam"]) == (["tiny"], ["tiny", "other"])


async def test_of_two_that_fit_one_must_be_named(directories: dict[str, str]) -> None:
    async with serving(settings_of(directories, mrms=2)) as app, client_of(app) as client:
        got = await ask(client)
        error = got.json()["error"]
        assert (got.status_code, error["code"]) == (400, "reward_model_required")
        assert error["param"] == "bough.reward_model"
        assert "'mrm0', 'mrm1'" in error["message"]
        named = await ask(client, bough={**BOUGH, "reward_model": "mrm1"})
        assert named.json()["usage"]["bough"]["reward_model"]["model"] == "mrm1"
        ids = {one["id"]: one["bough"] for one in (await client.get("/v1/models")).json()["data"]}
        assert ids["tiny:saffron"]["reward_model"] == "verifier"


@every_strategy
async def test_every_strategy_goes_on_with_a_beginning(
    strategy: str, app: FastAPI, client: httpx.AsyncClient
) -> None:
    sdk = AsyncOpenAI(
        api_key="unused", base_url="http://bough/v1", http_client=client, max_retries=0
    )
    catalog = app.state.services.catalog
    if strategy not in catalog.carried_by(catalog.models["tiny"]):
        got = await ask(client, bough={"strategy": strategy})
        assert got.json()["error"]["code"] == "unsupported_by_engine"
        return
    params = {"width": 2} if "width" in strategy_class(strategy).Params.model_fields else {}
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [ASKED, BEGUN],
        "seed": 4,
        "max_tokens": 8,
        "extra_body": {"bough": {"strategy": strategy, "params": params}},
    }
    whole = await sdk.chat.completions.create(**asked)
    stream = await sdk.chat.completions.create(**asked, stream=True)
    texts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    content = whole.choices[0].message.content
    assert "".join(texts) == content
    engine = catalog.models["tiny"].engine
    prompt = engine.render([ASKED, BEGUN], continue_final=True)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt)
    assert engine.decode(prompt).endswith(BEGUN["content"])


async def test_the_finalists_may_have_a_judge_of_their_own(client: httpx.AsyncClient) -> None:
    def asked(**params: Any) -> dict[str, Any]:
        return {**BOUGH, "params": {**BOUGH["params"], **params}, "return": {"candidates": 9}}

    plain = (await ask(client, bough=asked())).json()
    got = (await ask(client, bough=asked(finalist_judge="constant"))).json()
    ledger, before = got["usage"]["bough"], plain["usage"]["bough"]
    (further,) = ledger["further_reward_models"]
    assert further["model"] == "constant"
    assert further["calls"] == len(got["bough"]["candidates"]) > 1
    assert ledger["reward_model"] == before["reward_model"]
    assert "further_reward_models" not in before
    spent = got["bough"]["spent"]["reward_calls"]
    assert spent == ledger["reward_model"]["calls"] + further["calls"]
    # A constant has no favourite: the order stays, the scores are its own.
    contents = [one["content"] for one in got["bough"]["candidates"]]
    assert contents == [one["content"] for one in plain["bough"]["candidates"]]
    assert len({one["score"] for one in got["bough"]["candidates"]}) == 1
    assert got["bough"]["resolved"] == "saffron: last beam judged again"


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [("constnt", 404, "reward_model_not_found"), (7, 400, "invalid_type"), ("", 404, None)],
)
async def test_a_wrong_judge_of_finalists_is_named(
    value: Any, status: int, code: str | None, client: httpx.AsyncClient
) -> None:
    got = await ask(client, bough={**BOUGH, "params": {"finalist_judge": value}})
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (status, "bough.params.finalist_judge")
    assert code in (error["code"], None)
