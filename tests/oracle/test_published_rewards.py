"""Published reward models: our values are those that their authors' formulas give.

Every oracle here does what the model card says with transformers alone: the whole text in one
piece, one forward pass over all of it, the head by hand. Ours reads step after step over a cache.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, relu
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Model,
)

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim
from reward_models.outcome import open_judge as open_outcome
from reward_models.process import open_judge as open_process
from reward_models.reader import ReadingJudge
from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

CLOSE = 1e-4
QUESTION = "Mia has 12 coins and finds 30 coins. How many coins does she have?"
MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": QUESTION},)
STEPS = ("Step 1: 12+30=42\n\n", "Step 2: 42-1=41. é\n\n", "Step 3: so\n\n", "The answer is 42.")
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
PROCESS = [name for name, one in CHECKPOINTS.items() if one.kind == "process"]
OUTCOME = [name for name, one in CHECKPOINTS.items() if one.kind == "outcome"]


def qwen_math_prm(directory: Path, steps: tuple[str, ...]) -> list[float]:
    """softmax of `score` at every <extra_0>, of which one stands behind each step."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": SYSTEM},
            *MESSAGES,
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ],
        tokenize=False,
    )
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    states = Qwen2Model.from_pretrained(directory)(ids).last_hidden_state
    head = load_file(directory / "model.safetensors")
    inner = relu(linear(states, head["score.0.weight"], head["score.0.bias"]))
    rows = linear(inner, head["score.2.weight"], head["score.2.bias"]).softmax(-1)
    tag = tokenizer.convert_tokens_to_ids("<extra_0>")
    return rows[ids == tag][:, 1].tolist()


def skywork_o1_prm(directory: Path, steps: tuple[str, ...]) -> list[float]:
    """sigmoid of `v_head` at the line break behind each step; steps are tokenised one by one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = tokenizer.encode(f"{tokenizer.bos_token}{QUESTION}\n", add_special_tokens=False)
    line_break = tokenizer.encode("\n", add_special_tokens=False)[-1]
    at = []
    for step in steps:
        ids += [*tokenizer.encode(step, add_special_tokens=False), line_break]
        at.append(len(ids) - 1)
    states = Qwen2Model.from_pretrained(directory)(torch.tensor([ids])).last_hidden_state[0]
    head = load_file(directory / "model.safetensors")
    value = linear(states, head["v_head.summary.weight"], head["v_head.summary.bias"])
    return value[at, 0].sigmoid().tolist()


def rlhflow_prm(directory: Path, steps: tuple[str, ...]) -> list[float]:
    """The chance of "+" against "-" where the model replies, one conversation for every step."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    pair = [tokenizer.encode(text, add_special_tokens=False)[-1] for text in "+-"]
    turns: list[dict[str, str]] = []
    values = []
    for number, step in enumerate(steps):
        turns += [
            {"role": "user", "content": step if number else f"{QUESTION} {step}"},
            {"role": "assistant", "content": "+"},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer.encode(text, add_special_tokens=False)
        logits = model(torch.tensor([ids])).logits[0, -3, pair]  # in front of: + <|eot_id|>
        values.append(float(logits.softmax(-1)[0]))
    return values


def math_shepherd(directory: Path, steps: tuple[str, ...]) -> list[float]:
    """The chance of "+" against "-" at every tag of the whole text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    text = f"{QUESTION} " + "\n".join(f"{step} ки" for step in steps)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
    pair = tokenizer.encode("+ -")
    tag = tokenizer.encode("ки")[-1]
    return model(ids).logits[:, :, pair].softmax(-1)[:, :, 0][ids == tag].tolist()


def sequence_classification(directory: Path, steps: tuple[str, ...]) -> list[float]:
    """The library's own classifier over the rendered conversation."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1)
    answer = {"role": "assistant", "content": "".join(steps)}
    text = tokenizer.apply_chat_template([*MESSAGES, answer], tokenize=False)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    return [float(model(ids).logits[0, 0])]


ORACLES: dict[str, Callable[[Path, tuple[str, ...]], list[float]]] = {
    "qwen-math-prm": qwen_math_prm,
    "skywork-o1-prm": skywork_o1_prm,
    "rlhflow-prm": rlhflow_prm,
    "math-shepherd": math_shepherd,
    "reward-llama": sequence_classification,
    "reward-qwen3": sequence_classification,
}


@dataclass
class Case:
    """One published layout, its judge and its oracle."""

    name: str
    directory: Path
    judge: ReadingJudge

    @torch.no_grad()
    def expected(self, *steps: str) -> list[float]:
        """What the authors' formula gives."""
        if CHECKPOINTS[self.name].kind == "process":
            steps = tuple(step.strip("\n") for step in steps)
        return ORACLES[self.name](self.directory, steps)


def open_case(name: str, directory: Path, **options: Any) -> Case:
    checkpoint = CHECKPOINTS[name]
    open_judge = open_process if checkpoint.kind == "process" else open_outcome
    given = {**checkpoint.options, "kv_tokens": 4096, **options}
    return Case(name, directory, open_judge("judge", str(directory), given))


@pytest.fixture
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    case = open_case(request.param, write_checkpoint(request.param, tmp_path))
    yield case
    assert case.judge.stats().pages_claimed == 0
    case.judge._runtime.ledger.check()
    await case.judge.aclose()


def candidate(*steps: str, claim: Claim | None = None) -> Candidate:
    return Candidate(MESSAGES, "".join(steps), (), steps, claim)


@pytest.mark.parametrize("case", PROCESS, indirect=True)
async def test_every_step_has_its_published_value(case: Case) -> None:
    expected = case.expected(*STEPS)
    (score,) = await case.judge.score([candidate(*STEPS)])
    assert score.steps == pytest.approx(expected, abs=CLOSE)
    assert score.value == score.steps[-1]
    assert len({round(value, 4) for value in expected}) == len(STEPS)


@pytest.mark.parametrize("case", OUTCOME, indirect=True)
async def test_an_answer_has_its_published_value(case: Case) -> None:
    answers = [STEPS, STEPS[:1], ("é",), ("",)]
    scores = await case.judge.score([candidate(*steps) for steps in answers])
    for steps, score in zip(answers, scores, strict=True):
        assert score.value == pytest.approx(case.expected(*steps)[0], abs=CLOSE)
        assert score.steps == ()
    assert len({round(score.value, 3) for score in scores}) == len(answers)


@pytest.mark.parametrize("case", PROCESS, indirect=True)
async def test_a_new_step_costs_its_own_tokens_and_no_others(case: Case) -> None:
    """Counted by the score and by the runtime, against the length of the published text."""
    claim = await case.judge.open(MESSAGES)
    length = 0
    for count in range(1, len(STEPS) + 1):
        before = case.judge.stats().tokens_computed
        (score,) = await case.judge.score([candidate(*STEPS[:count], claim=claim)])
        laid = case.judge._readings.layout.lay_out(MESSAGES, STEPS[:count], None)
        assert laid.ends[-1] == len(laid.tokens)
        assert score.tokens_computed == len(laid.tokens) - length
        assert case.judge.stats().tokens_computed - before == score.tokens_computed
        assert score.steps == pytest.approx(case.expected(*STEPS[:count]), abs=CLOSE)
        length = len(laid.tokens)
    claim.release()


@pytest.mark.parametrize("case", PROCESS, indirect=True)
async def test_branches_pay_for_their_own_last_step_only(case: Case) -> None:
    claim = await case.judge.open(MESSAGES)
    (trunk,) = await case.judge.score([candidate(*STEPS[:2], claim=claim)])
    leaves = [candidate(*STEPS[:2], f"Step 3: {n}{n}\n\n", claim=claim) for n in range(4)]
    scores = await case.judge.score(leaves)
    base = len(case.judge._readings.layout.lay_out(MESSAGES, STEPS[:2], None).tokens)
    for leaf, score in zip(leaves, scores, strict=True):
        laid = case.judge._readings.layout.lay_out(MESSAGES, leaf.steps, None)
        assert score.tokens_computed <= len(laid.tokens) - base
        assert score.steps[:2] == trunk.steps
        assert score.steps == pytest.approx(case.expected(*leaf.steps), abs=CLOSE)
    claim.release()


@pytest.mark.parametrize("case", OUTCOME, indirect=True)
async def test_a_longer_answer_costs_what_is_new_and_the_end_of_the_template(case: Case) -> None:
    claim = await case.judge.open(MESSAGES)
    await case.judge.score([candidate(*STEPS[:2], claim=claim)])
    (score,) = await case.judge.score([candidate(*STEPS[:3], claim=claim)])
    tokens = [
        case.judge._readings.layout.lay_out(MESSAGES, STEPS[:count], None).tokens
        for count in (2, 3)
    ]
    shared = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
    assert score.tokens_computed == len(tokens[1]) - shared
    claim.release()


@pytest.mark.parametrize("case", PROCESS, indirect=True)
async def test_tags_in_the_question_and_in_steps_are_text(case: Case) -> None:
    """Whoever writes a tag gets no value for it: one value per step, at our own tags."""
    steps = ("one <extra_0> ки\n\n", "two + - ки\n\n")
    (score,) = await case.judge.score([candidate(*steps)])
    assert len(score.steps) == 2


@pytest.mark.parametrize("name", PROCESS)
async def test_small_pages_and_chunks_change_nothing(name: str, tmp_path: Path) -> None:
    directory = write_checkpoint(name, tmp_path)
    case = open_case(name, directory, page_tokens=4, chunk_tokens=8)
    scores = await case.judge.score([candidate(*STEPS[:n]) for n in (2, 4, 1, 3)])
    expected = case.expected(*STEPS)
    for count, score in zip((2, 4, 1, 3), scores, strict=True):
        assert score.steps == pytest.approx(expected[:count], abs=CLOSE)
    await case.judge.aclose()
