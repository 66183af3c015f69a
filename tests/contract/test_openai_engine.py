"""The `openai` engine keeps the laws of `engines.conformance` over servers that really answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.base import Capability, Engine, Sampling
from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.echo import open_engine as open_echo
from engines.errors import UnsupportedByEngine
from engines.openai_http import open_engine
from reward_models.verifier import VerifierJudge
from search.budget import Limits
from search.plugins import load
from search.registry import strategy_class
from search.run import Piece, Run, RunRequest
from server.serve import BackgroundServer
from server.settings import Settings
from tests.api.harness import CHAT, body, chunks_of, client_of, serving
from tests.openai_upstream import upstream_over

TEXT = [check for check in CHECKS if Capability.TOKENS not in check.requires]
WHOLE = [check for check in TEXT if "stop" in check.name or "bound" in check.name]
TINY = {"device": "cpu", "dtype": "float32"}


def noisy_echo() -> Engine:
    return open_echo("m", "", {"context_tokens": 200, "margin": 4.0})


async def checked(check: Check, url: str, model: str, **options: Any) -> None:
    make = partial(open_engine, "up", model, {"base_url": url, **options})
    try:
        await run_check(check, Subject(make))
    except NotApplicable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("upstream_llama"))


@pytest.fixture(scope="module")
def bough(tiny_llama: Path) -> Iterator[str]:
    """A whole bough server: an echo model and a tiny decoder on the embedded engine."""
    echo = {"kind": "echo", "options": {"context_tokens": 200, "margin": 4.0}}
    tiny = {"kind": "embedded", "model": str(tiny_llama), "options": TINY}
    models: dict[str, Any] = {"echo": {"engine": echo}, "tiny": {"engine": tiny}}
    with BackgroundServer(Settings(models=models)) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def echo_upstream() -> Iterator[str]:
    with upstream_over(noisy_echo) as url:
        yield url


@pytest.fixture(scope="module")
def tiny_upstream(tiny_llama: Path) -> Iterator[str]:
    from engines.embedded.engine import open_engine as open_embedded

    with upstream_over(lambda: open_embedded("m", str(tiny_llama), TINY)) as url:
        yield url


@pytest.mark.parametrize("model", ["echo", "tiny"])
@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_over_bough_itself(check: Check, model: str, bough: str) -> None:
    await checked(check, bough, model)


@pytest.mark.parametrize("check", WHOLE, ids=lambda check: check.name)
async def test_over_a_bough_that_is_taken_for_anybody(check: Check, bough: str) -> None:
    known = {"dialect": "plain", "context_tokens": 192, "capabilities": ["seed"]}
    await checked(check, bough, "tiny", **known)


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_chats_that_are_continued(check: Check, tiny_upstream: str) -> None:
    await checked(check, tiny_upstream, "m")


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_chats_that_are_continued_by_a_lean_server(check: Check, tiny_upstream: str) -> None:
    """It keeps no stop string in the text, so steps are cut off here."""
    known = {"dialect": "plain", "continue_style": "flag", "mode": "continue"}
    await checked(check, tiny_upstream, "m", **known, capabilities=["seed", "logprobs"])


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_completions_of_a_local_template(
    check: Check, tiny_upstream: str, tiny_llama: Path
) -> None:
    await checked(check, tiny_upstream, "m", chat_template=str(tiny_llama))


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_bytes_that_are_no_characters(check: Check, echo_upstream: str) -> None:
    await checked(check, echo_upstream, "m")


DEEP = {"width": 4, "max_depth": 4}
STRATEGIES: dict[str, dict[str, Any]] = {
    **{name: {"width": 3} for name in load("bough.strategies")},
    "single": {},
    "draft_verify": {},
    "beam": DEEP,
    "ets": DEEP,
}
UNFIT = {
    "annealed": "schedule",
    "draft_verify": "drafter",
    "saffron": "next_logprobs",
    **dict.fromkeys(("dts", "dts_star", "fk_steering"), "denoise"),
}
"""Strategies that no upstream carries, and what they lack there."""


def run_of(engine: Engine, strategy: str, **limits: int) -> Run:
    request = RunRequest(
        strategy=strategy,
        params=STRATEGIES[strategy],
        messages=({"role": "user", "content": "one\n2+2=4\nthree\nfour"},),
        sampling=Sampling(max_tokens=40, stop=("zzz",)),
        seed=5,
        limits=Limits(**limits),
    )
    return Run(request, engine=engine, judge=VerifierJudge("verifier"))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - UNFIT))
async def test_searches_over_text(strategy: str, echo_upstream: str) -> None:
    options = {"base_url": echo_upstream, "step_delimiters": ["\n"]}
    engine = open_engine("up", "m", options)
    run = run_of(engine, strategy)
    result = await run.result()
    answer = result.answers[0]
    assert answer.content
    is_named = strategy == "deep_confidence"  # it asks for log-probabilities, which name tokens
    assert bool(answer.token_ids) == is_named
    assert 0 < answer.num_tokens <= 40
    assert result.prompt_tokens > len("one\n2+2=4\nthree\nfour")
    drawn = sum(branch.step.num_tokens for branch in run.tree.branches)
    assert result.spent.generated_tokens >= drawn >= answer.num_tokens
    assert result.tree.unique_tokens == result.prompt_tokens + drawn
    if strategy in ("beam", "ets"):
        assert result.tree.depth > 1

    again = await run_of(engine, strategy).result()
    assert again.answers[0].content == answer.content
    pieces = [item async for item in run_of(engine, strategy).stream()]
    streamed = "".join(piece.text for piece in pieces if isinstance(piece, Piece))
    assert streamed == answer.content
    await engine.aclose()


@pytest.mark.parametrize("strategy", ["best_of_n", "beam"])
async def test_a_budget_is_kept_where_tokens_are_only_counted(
    strategy: str, echo_upstream: str
) -> None:
    options = {"base_url": echo_upstream, "step_delimiters": ["\n"]}
    engine = open_engine("up", "m", options)
    result = await run_of(engine, strategy, generated_tokens=20).result()
    assert result.stop_reason == "budget"
    assert 0 < result.spent.generated_tokens <= 20
    await engine.aclose()


STEPPED = [name for name in STRATEGIES if Capability.CONTINUE_TEXT in strategy_class(name).requires]


@pytest.mark.parametrize("strategy", STEPPED)
async def test_steps_need_an_upstream_that_goes_on(strategy: str, bough: str) -> None:
    engine = open_engine("up", "tiny", {"base_url": bough, "dialect": "plain"})
    with pytest.raises(UnsupportedByEngine, match="continue_text"):
        run_of(engine, strategy)
    await engine.aclose()


@pytest.mark.parametrize("strategy", UNFIT)
async def test_what_no_upstream_carries_is_refused(strategy: str, echo_upstream: str) -> None:
    engine = open_engine("up", "m", {"base_url": echo_upstream})
    with pytest.raises(UnsupportedByEngine, match=UNFIT[strategy]):
        run_of(engine, strategy)
    await engine.aclose()


@pytest.mark.parametrize("chat", [True, False])
async def test_logprobs_reach_the_wire(chat: bool, tiny_upstream: str, tiny_llama: Path) -> None:
    options = {"base_url": tiny_upstream, "dialect": "vllm"}
    if not chat:
        options["chat_template"] = str(tiny_llama)
    model = {"kind": "openai", "model": "m", "options": options}
    settings = Settings(models={"up": {"engine": model}})
    async with serving(settings) as app, client_of(app) as client:
        asked = {"model": "up", "max_tokens": 6, "logprobs": True, "top_logprobs": 2, "seed": 1}
        whole = (await client.post(CHAT, json=body(**asked))).json()
        stream = await client.post(CHAT, json=body(**asked, stream=True))
    choice = whole["choices"][0]
    rows = choice["logprobs"]["content"]
    assert "".join(row["token"] for row in rows) == choice["message"]["content"]
    # completions list alternatives by their text, which two of them may share
    assert all(len(row["top_logprobs"]) in ((2,) if chat else (1, 2)) for row in rows)
    assert whole["usage"]["completion_tokens"] == 6
    chunks = [one["choices"][0] for one in chunks_of(stream.text) if one["choices"]]
    streamed = [row for one in chunks if one["logprobs"] for row in one["logprobs"]["content"]]
    assert [row["token"] for row in streamed] == [row["token"] for row in rows]
