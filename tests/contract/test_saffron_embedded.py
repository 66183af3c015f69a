"""Saffron on the embedded engine with a multifurcation judge of its own vocabulary, both tiny."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the embedded engine")

from engines.base import ChatMessage, Sampling
from engines.embedded.engine import EmbeddedEngine, open_engine
from reward_models.base import UNSEEN, Candidate
from reward_models.multifurcation import MultifurcationJudge, open_judge
from search.run import Piece, Result, Run, RunRequest
from tests.contract.tiny_multifurcation import write_multifurcation

WIDTH = 5
MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "Tell me the code word."},)
PREFILLED: tuple[ChatMessage, ...] = (*MESSAGES, {"role": "assistant", "content": "Sure: "})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multifurcation(tmp_path_factory.mktemp("saffron"), layers=2)


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[EmbeddedEngine]:
    opened = open_engine("tiny", str(model.parent / "base"), {"device": "cpu", "kv_tokens": 4096})
    yield opened
    await opened.aclose()


@pytest.fixture
async def judge(model: Path) -> AsyncIterator[MultifurcationJudge]:
    options = {"base": str(model.parent / "base"), "device": "cpu", "kv_tokens": 4096}
    opened = open_judge("tiny-mrm", str(model), options)
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("messages", [MESSAGES, PREFILLED], ids=["asked", "prefilled"])
async def test_both_tries_compute_each_token_once(
    messages: tuple[ChatMessage, ...], engine: EmbeddedEngine, judge: MultifurcationJudge
) -> None:
    request = RunRequest(
        strategy="saffron",
        params={"width": WIDTH, "top_p": 0.6},
        messages=messages,
        sampling=Sampling(max_tokens=12),
        seed=1,
        continue_final=len(messages) > 1,
    )
    before = engine.stats().tokens_computed, judge.stats().tokens_computed
    run = Run(request, engine=engine, judge=judge)
    items = [item async for item in run.stream()]
    result = items[-1]
    assert isinstance(result, Result)
    text = "".join(item.text for item in items if isinstance(item, Piece))
    assert text == result.answers[0].content
    # What is open enters the next beam and is read there; what has ended is not.
    tokens = sum(one.step.num_tokens for one in run.tree.branches if one.finish is None)
    assert tokens > 2 * WIDTH
    claim = await judge.open(messages)
    prompt_sizes = result.prompt_tokens, len(claim.token_ids)
    claim.release()
    after = engine.stats().tokens_computed, judge.stats().tokens_computed
    for size, first, last in zip(prompt_sizes, before, after, strict=True):
        assert last - first == size + tokens
    assert result.spent.reward_tokens == after[1] - before[1]
    assert engine.stats().pages_claimed == judge.stats().pages_claimed == 0


async def test_a_nodes_score_is_what_the_judge_says_of_it(
    engine: EmbeddedEngine, judge: MultifurcationJudge
) -> None:
    request = RunRequest(
        strategy="saffron",
        params={"width": WIDTH},
        messages=MESSAGES,
        sampling=Sampling(max_tokens=6),
        seed=1,
    )
    run = Run(request, engine=engine, judge=judge)
    await run.result()
    nodes = [one for one in run.tree.branches[1:] if not one.is_finished]
    assert len(nodes) > WIDTH
    batch = [Candidate(MESSAGES, engine.decode(one.token_ids), one.token_ids, ()) for one in nodes]
    scores = run.tree.snapshot()["nodes"]
    said = {node["id"]: node["score"] for node in scores}
    for node, score in zip(nodes, await judge.score(batch), strict=True):
        assert said[node.id] == pytest.approx(score.value, abs=1e-4)
    assert any(value != UNSEEN for value in said.values() if value is not None)
