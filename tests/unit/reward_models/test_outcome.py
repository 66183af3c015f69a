"""Outcome judges, and what every published judge does with odd candidates."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, asked_of
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.outcome import open_judge as open_outcome
from reward_models.process import open_judge as open_process
from reward_models.reader import ReadingJudge
from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "How many coins?"},)
STEPS = ("Step 1: 12+30=42\n\n", "Step 2: so\n\n", "The answer is 42.")
PROCESS = [name for name, one in CHECKPOINTS.items() if one.kind == "process"]


@pytest.fixture
async def judge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ReadingJudge]:
    checkpoint = CHECKPOINTS[request.param]
    directory = write_checkpoint(request.param, tmp_path)
    open_judge = open_process if checkpoint.kind == "process" else open_outcome
    judge = open_judge("rm", str(directory), {**checkpoint.options, "kv_tokens": 2048})
    yield judge
    assert judge.stats().pages_claimed == 0
    judge._runtime.ledger.check()
    await judge.aclose()


def candidate(
    *steps: str,
    claim: Claim | None = None,
    messages: tuple[ChatMessage, ...] = MESSAGES,
    is_finished: bool = True,
) -> Candidate:
    return Candidate(messages, "".join(steps), (), steps, claim, is_finished)


@pytest.mark.parametrize("judge", ["reward-llama", "reward-qwen3"], indirect=True)
async def test_an_outcome_has_a_value_and_no_steps(judge: ReadingJudge) -> None:
    whole, part, again = await judge.score(
        [candidate(*STEPS), candidate(*STEPS[:1], is_finished=False), candidate(*STEPS)]
    )
    assert whole.steps == part.steps == ()
    assert whole.value == again.value != part.value
    assert again.tokens_computed == 0
    (known,) = await judge.score([candidate("".join(STEPS))])  # however it is cut into steps
    assert (known.value, known.tokens_computed) == (whole.value, 0)


@pytest.mark.parametrize("judge", CHECKPOINTS, indirect=True)
async def test_a_nan_costs_its_candidate_and_is_not_remembered(
    judge: ReadingJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of finite numbers may still overflow on some text."""
    forward = judge._runtime.decoder.forward

    def overflowing(*args: torch.Tensor) -> torch.Tensor:
        return forward(*args) * torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(judge._runtime.decoder, "forward", overflowing)
        (score,) = await judge.score([candidate(*STEPS)])
        assert math.isnan(score.value)
    assert len(judge._readings) == 0
    (score,) = await judge.score([candidate(*STEPS[:2], "other.")])
    assert math.isfinite(score.value)


@pytest.mark.parametrize("judge", PROCESS, indirect=True)
async def test_a_blank_step_has_the_value_of_the_one_in_front(judge: ReadingJudge) -> None:
    one, two = STEPS[:2]
    (plain,) = await judge.score([candidate(one, two)])
    (score,) = await judge.score([candidate("", one, "\n\n", two, " ")])
    first, second = plain.steps
    assert score.steps == (0.0, first, first, second, second)
    assert score.value == second
    assert score.tokens_computed == 0
    (blank,) = await judge.score([candidate("\n\n", "")])
    assert (blank.value, blank.steps) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("judge", CHECKPOINTS, indirect=True)
async def test_too_long_is_nan_alone(judge: ReadingJudge) -> None:
    long = candidate("x" * 900)
    wordy = candidate("x", messages=({"role": "user", "content": "y" * 900},))
    nan, fine, other = await judge.score([long, candidate(*STEPS), wordy])
    assert math.isnan(nan.value)
    assert math.isnan(other.value)
    assert math.isfinite(fine.value)


@pytest.mark.parametrize("judge", ["skywork-o1-prm", "math-shepherd", "rlhflow-prm"], indirect=True)
async def test_content_in_parts_reads_like_text(judge: ReadingJudge) -> None:
    parts: tuple[ChatMessage, ...] = (
        {"role": "user", "content": [{"type": "text", "text": "How many coins?"}]},
    )
    assert judge._readings.layout.prompt(parts) == judge._readings.layout.prompt(MESSAGES)


@pytest.mark.parametrize("judge", CHECKPOINTS, indirect=True)
async def test_conversations_of_several_turns_are_read(judge: ReadingJudge) -> None:
    turns: tuple[ChatMessage, ...] = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        *MESSAGES,
    )
    long, short = await judge.score([candidate(*STEPS, messages=turns), candidate(*STEPS)])
    assert math.isfinite(long.value)
    assert long.value != short.value


@pytest.mark.parametrize("judge", ["rlhflow-prm", "reward-llama"], indirect=True)
async def test_tenants_share_neither_pages_nor_values(judge: ReadingJudge) -> None:
    claims = [await judge.open(MESSAGES, tenant=tenant) for tenant in ("a", "b")]
    scores = [(await judge.score([candidate(*STEPS, claim=claim)]))[0] for claim in claims]
    assert scores[0].tokens_computed == scores[1].tokens_computed > 0
    for claim in claims:
        claim.release()


@pytest.mark.parametrize("judge", ["math-shepherd", "reward-qwen3"], indirect=True)
async def test_a_closed_judge_says_so_even_of_what_it_knows(judge: ReadingJudge) -> None:
    await judge.score([candidate(*STEPS)])
    await judge.aclose()
    with pytest.raises(RewardUnavailable, match="rm"):
        await judge.score([candidate(*STEPS)])


@pytest.mark.parametrize(
    ("card", "option", "shown"),
    [
        (None, None, False),
        ("shown", None, True),
        ("hidden", "shown", True),
        ("shown", "hidden", False),
    ],
)
async def test_a_judge_says_whether_it_is_shown_the_beginning(
    card: str | None, option: str | None, shown: bool, tmp_path: Path
) -> None:
    directory = write_checkpoint("reward-llama", tmp_path)
    if card is not None:
        (directory / "bough.json").write_text(json.dumps({"id": "rm", "prefill": card}))
    options = {**CHECKPOINTS["reward-llama"].options, "kv_tokens": 2048}
    judge = open_outcome("rm", str(directory), options | ({"prefill": option} if option else {}))
    begun = (*MESSAGES, {"role": "assistant", "content": "Step 1:"})
    assert asked_of(judge.info, begun, is_begun=True) == (begun if shown else MESSAGES)
    assert asked_of(judge.info, begun, is_begun=False) == begun
    await judge.aclose()
    with pytest.raises(RewardLoadError, match="must be hidden or shown"):
        open_outcome("rm", str(directory), options | {"prefill": "so"})
