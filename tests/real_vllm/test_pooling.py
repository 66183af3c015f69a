"""Judges on a real vLLM: the embedded judges' values, the laws, and what a dead engine looks like.

Two engines stand beside each other, as a generator and a judge do: a process head and an outcome
head. Each is opened once for the module.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, RewardInfo, RewardStats, Score
from reward_models.conformance import CHECKS, Check, Subject, run_check
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.outcome import open_judge as open_outcome
from reward_models.process import open_judge as open_process
from reward_models.vllm_pooling import PoolingJudge, open_judge
from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

# vLLM and what it imports warn of their own plans.
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]

MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "How many coins has Mia?"},)
STEPS = ("Step 1: 12+30=42\n\n", "Step 2: so <extra_0> é\n\n", "The answer is 42.")
ANSWERS = (STEPS, STEPS[:2], ("no",), ())
CLOSE = 1e-4
OPTIONS = {
    "distributed_executor_backend": "uni",
    "dtype": "float32",
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_num_seqs": 16,
}


def candidate(steps: Sequence[str], claim: Claim | None = None) -> Candidate:
    return Candidate(MESSAGES, "".join(steps), (), tuple(steps), claim)


class Kept:
    """A judge that outlives those who close it."""

    def __init__(self, judge: PoolingJudge) -> None:
        self._judge = judge
        self.info: RewardInfo = judge.info

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        return await self._judge.open(messages, tenant=tenant)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return await self._judge.score(batch)

    def stats(self) -> RewardStats:
        return self._judge.stats()

    async def aclose(self) -> None:
        """The module closes it."""


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("qwen-math-prm", "reward-qwen3", "math-shepherd")
    return {name: write_checkpoint(name, tmp_path_factory.mktemp(name)) for name in names}


async def opened(name: str, directory: Path) -> AsyncIterator[PoolingJudge]:
    with pytest.MonkeyPatch.context() as patch:
        # One process less per engine.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        judge = open_judge(name, str(directory), OPTIONS)
    try:
        yield judge
    finally:
        await judge.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(directories: dict[str, Path]) -> AsyncIterator[PoolingJudge]:
    async for judge in opened("qwen-math-prm", directories["qwen-math-prm"]):
        yield judge


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcome(directories: dict[str, Path]) -> AsyncIterator[PoolingJudge]:
    async for judge in opened("reward-qwen3", directories["reward-qwen3"]):
        yield judge


async def test_values_are_those_of_the_embedded_judge(
    process: PoolingJudge, outcome: PoolingJudge, directories: dict[str, Path]
) -> None:
    for judge, open_embedded in ((process, open_process), (outcome, open_outcome)):
        directory = directories[judge.info.model_id]
        embedded = open_embedded(judge.info.model_id, str(directory), {"kv_tokens": 2048})
        ours, theirs = [
            await one.score([candidate(steps) for steps in ANSWERS]) for one in (judge, embedded)
        ]
        await embedded.aclose()
        assert judge.info == embedded.info
        for one, other in zip(ours, theirs, strict=True):
            assert one.value == pytest.approx(other.value, abs=CLOSE)
            assert one.steps == pytest.approx(other.steps, abs=CLOSE)


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.name != "a_closed_judge_says_so"], ids=lambda c: c.name
)
async def test_keeps_the_laws(check: Check, process: PoolingJudge, outcome: PoolingJudge) -> None:
    for judge in (process, outcome):
        kept = Kept(judge)
        await run_check(check, Subject(lambda kept=kept: kept, unreadable=("one step " * 200,)))


async def test_all_steps_cost_one_call_and_known_ones_none(process: PoolingJudge) -> None:
    steps = ("one\n\n", "two\n\n", "three")
    tokens = process._readings.layout.lay_out(MESSAGES, steps, None).tokens
    (first,) = await process.score([candidate(steps)])
    (again,) = await process.score([candidate(steps)])
    (part,) = await process.score([candidate(steps[:2])])
    assert first.tokens_computed == len(tokens)
    assert (again.tokens_computed, part.tokens_computed) == (0, 0)
    assert again.steps == first.steps
    assert part.steps == first.steps[:2]


async def test_outcomes_share_their_prefix_within_a_tenant_only(outcome: PoolingJudge) -> None:
    """Block for block; the salt keeps tenants apart."""
    messages: tuple[ChatMessage, ...] = ({"role": "user", "content": "Mia has coins. " * 12},)
    computed = {}
    for tenant, answer in (("a", "one"), ("a", "two"), ("b", "three")):
        claim = await outcome.open(messages, tenant=tenant)
        one = Candidate(messages, answer, (), (answer,), claim)
        computed[answer] = (await outcome.score([one]))[0].tokens_computed
    assert computed["two"] < computed["one"] - 32
    assert computed["three"] > computed["two"] + 32


async def test_tenants_remember_apart(process: PoolingJudge) -> None:
    claims = [await process.open(MESSAGES, tenant=tenant) for tenant in ("a", "b")]
    scores = [(await process.score([candidate(("seven",), claim)]))[0] for claim in claims]
    assert scores[0].tokens_computed == scores[1].tokens_computed > 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("qwen-math-prm", {"nonsense": 1}, "'nonsense' is no engine argument of vLLM"),
        ("qwen-math-prm", {"runner": "generate"}, "'runner' is decided by the preset"),
        ("qwen-math-prm", {"max_model_len": 1 << 20}, "vLLM refuses it"),
        ("math-shepherd", {**CHECKPOINTS["math-shepherd"].options}, "kind = 'process'"),
    ],
)
async def test_refusals(
    name: str, options: dict[str, object], said: str, directories: dict[str, Path]
) -> None:
    with pytest.raises(RewardLoadError, match=said):
        open_judge("rm", str(directories[name]), options)


async def test_a_killed_engine_is_unavailable_and_so_is_a_closed_judge(
    directories: dict[str, Path],
) -> None:
    async for judge in opened("reward-qwen3", directories["reward-qwen3"]):
        (before,) = await judge.score([candidate(STEPS)])
        assert before.tokens_computed > 0
        for core in judge._engine.engine_core.resources.engine_manager.processes:
            os.kill(core.pid, signal.SIGKILL)
        with pytest.raises(RewardUnavailable, match="reward-qwen3"):
            await judge.score([candidate(STEPS[:1])])
        with pytest.raises(RewardUnavailable, match="reward-qwen3"):
            await judge.score([candidate(STEPS)])
        await judge.aclose()
        await judge.aclose()
        with pytest.raises(RewardUnavailable, match="closed"):
            await judge.score([candidate(STEPS)])
