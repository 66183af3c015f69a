"""Saffron on vLLM: the tokens that the embedded engine chooses with the same model and judge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI

from engines.base import ChatMessage, Engine, NextTokens, Prefix, Sampling
from engines.embedded.engine import EmbeddedEngine
from engines.embedded.engine import open_engine as open_embedded
from engines.vllm_engine import VllmEngine
from reward_models.multifurcation import MultifurcationJudge
from search.result import Answer
from search.run import Piece, Result, Run, RunRequest
from server.settings import Settings
from tests.api.harness import CHAT, chunks_of, client_of, content_of, serving
from tests.contract.tiny_multifurcation import write_multifurcation
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED

pytestmark = SHARED

EMBEDDED = {"device": "cpu", "dtype": "float32", "kv_tokens": 4096}
QUESTIONS = ("Tell me the code word.", "Who keeps the key?", "one cat sat", "é € 😀")
BEGUN: ChatMessage = {"role": "assistant", "content": "Sure: the"}
NUM_TOKENS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random multifurcation model; its base lies beside it and generates."""
    return write_multifurcation(tmp_path_factory.mktemp("vllm_saffron"), layers=2)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app(model: Path) -> AsyncIterator[FastAPI]:
    """The whole server with the generator on vLLM and the judge on the embedded runtime."""
    base = str(model.parent / "base")
    engine = {"kind": "vllm", "model": base, "options": SMALL}
    mrm = {"kind": "multifurcation", "model": str(model), "options": {**EMBEDDED, "base": base}}
    settings = Settings(models={"tiny": {"engine": engine}}, reward_models={"mrm": mrm})
    async with serving(settings) as served:
        yield served


@pytest.fixture
def on_vllm(app: FastAPI) -> VllmEngine:
    engine = app.state.services.catalog.models["tiny"].engine
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture
def judge(app: FastAPI) -> MultifurcationJudge:
    opened = app.state.services.catalog.judges["mrm"]
    assert isinstance(opened, MultifurcationJudge)
    return opened


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedded(model: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = open_embedded("tiny", str(model.parent / "base"), EMBEDDED)
    yield engine
    await engine.aclose()


@dataclass
class Listing:
    """Notes what is listed of next tokens, and how many prefixes were asked about at once."""

    engine: Engine
    rows: list[NextTokens] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def next_logprobs(self, prefixes: Sequence[Prefix], **how: Any) -> list[NextTokens]:
        rows = await self.engine.next_logprobs(prefixes, **how)
        self.batches.append(len(prefixes))
        self.rows += rows
        return rows


async def searched(
    engine: Any, judge: MultifurcationJudge, messages: tuple[ChatMessage, ...], **params: Any
) -> Result:
    request = RunRequest(
        strategy="saffron",
        params=params,
        messages=messages,
        sampling=Sampling(max_tokens=NUM_TOKENS),
        seed=1,
        continue_final=messages[-1]["role"] == "assistant",
    )
    items = [item async for item in Run(request, engine=engine, judge=judge).stream()]
    result = items[-1]
    assert isinstance(result, Result)
    text = "".join(item.text for item in items if isinstance(item, Piece))
    assert text == result.answers[0].content
    return result


def beam_of(result: Result) -> dict[tuple[int, ...], Answer]:
    """By tokens: two that are worth the same to the last bits may come in either order."""
    beam = {one.token_ids: one for one in result.candidates}
    assert len(beam) == len(result.candidates)
    return beam


@pytest.mark.parametrize("is_begun", [False, True], ids=["asked", "begun"])
@pytest.mark.parametrize(("width", "top_p"), [(1, 0.8), (4, 0.3), (5, 0.8)])
async def test_the_same_tokens_are_chosen(
    width: int,
    top_p: float,
    is_begun: bool,
    on_vllm: VllmEngine,
    embedded: EmbeddedEngine,
    judge: MultifurcationJudge,
) -> None:
    """The judge is the same one, so only a token at a nucleus' very edge could differ."""
    for question in QUESTIONS:
        messages: tuple[ChatMessage, ...] = ({"role": "user", "content": question},)
        messages += (BEGUN,) if is_begun else ()
        prompts = [one.render(messages, continue_final=is_begun) for one in (on_vllm, embedded)]
        assert prompts[0] == prompts[1]
        listing = Listing(on_vllm)
        there = await searched(listing, judge, messages, width=width, top_p=top_p)
        here = await searched(embedded, judge, messages, width=width, top_p=top_p)
        theirs, ours = beam_of(there), beam_of(here)
        assert theirs.keys() == ours.keys()
        for tokens, one in theirs.items():
            assert one.finish_reason == ours[tokens].finish_reason
            assert one.score == pytest.approx(ours[tokens].score, abs=1e-3)
            assert one.logps == pytest.approx(ours[tokens].logps, abs=1e-3)
        assert max(listing.batches) <= width
        assert there.spent.reward_calls == sum(listing.batches) == here.spent.reward_calls


async def test_more_is_listed_until_it_holds_the_mass(
    on_vllm: VllmEngine, judge: MultifurcationJudge
) -> None:
    """A flat distribution: the nucleus is larger than the 64 that are asked for first."""
    listing = Listing(on_vllm)
    messages: tuple[ChatMessage, ...] = ({"role": "user", "content": QUESTIONS[0]},)
    await searched(listing, judge, messages, width=3, top_p=0.95)
    assert any(len(row.ids) > 64 for row in listing.rows)
    assert all(row.tail_mass <= 0.05 + 1e-4 for row in listing.rows)


async def test_over_the_wire(app: FastAPI) -> None:
    """Nothing is named but the strategy; the answer was begun."""
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTIONS[0]}, BEGUN],
        "max_tokens": NUM_TOKENS,
        "bough": {"strategy": "saffron", "params": {"width": 4}},
    }
    async with client_of(app) as client:
        whole = (await client.post(CHAT, json=asked)).json()
        streamed = await client.post(CHAT, json={**asked, "stream": True})
    content = whole["choices"][0]["message"]["content"]
    assert content_of(chunks_of(streamed.text)) == content != ""
    assert whole["usage"]["bough"]["reward_model"]["model"] == "mrm"
