"""The process judge: against its base, adapter and head by hand; memory, claims and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from engines.base import ChatMessage, TokenIds
from engines.errors import EngineError, ModelLoadError
from reward_models.base import Candidate, Claim
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.process import open_judge
from reward_models.reader import ReadingJudge
from tests.contract.tiny_judge import write_tiny_judge

MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "how many cats sat"},)
STEPS = ("one cat\n\n", "and é dog\n\n", "two.")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_judge(tmp_path)


@pytest.fixture
async def judge(directory: Path) -> AsyncIterator[ReadingJudge]:
    judge = open_judge("prm", str(directory), {"kv_tokens": 2048})
    yield judge
    require_idle(judge)
    await judge.aclose()


def require_idle(judge: ReadingJudge) -> None:
    assert judge.stats().pages_claimed == 0
    judge._runtime.ledger.check()


def candidate(
    *steps: str, claim: Claim | None = None, messages: tuple[ChatMessage, ...] = MESSAGES
) -> Candidate:
    return Candidate(messages, "".join(steps), (), steps, claim)


def by_hand(directory: Path, judge: ReadingJudge, steps: tuple[str, ...]) -> list[float]:
    """Hugging Face's base with W + (alpha / r) B A in place, and the head on each step's end."""
    model = LlamaForCausalLM.from_pretrained(directory.parent / "base", dtype=torch.float32).eval()
    adapter = load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
    head = load_file(directory / "head.safetensors")
    tokenizer = judge._runtime.tokenizer
    text = tokenizer.render(MESSAGES, tools=None, continue_final=False)
    tokens: TokenIds = tokenizer.encode(text)
    ends, start = [], len(tokens)
    for step in steps:
        tokens += tokenizer.encode(step)
        ends.append(len(tokens) - 1)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight += config["lora_alpha"] / config["r"] * delta
        states = model.model(torch.tensor([tokens])).last_hidden_state[0]
        logps = model.lm_head(states[:-1]).log_softmax(-1)
        taken = logps.gather(1, torch.tensor(tokens[1:]).unsqueeze(1))[:, 0]
        sums = torch.stack([taken[start - 1 : end].sum() for end in ends])
        logits = states[ends] @ head["weight"].T + head["bias"]
        logits[:, 0] += head.get("likelihood", torch.zeros(1)) * sums
    values: list[float] = torch.sigmoid(logits)[:, 0].tolist()
    return values


async def test_a_head_without_likelihood_reads_states_only(directory: Path) -> None:
    path = directory / "head.safetensors"
    head = load_file(path)
    del head["likelihood"]
    save_file(head, path)
    judge = open_judge("prm", str(directory), {"kv_tokens": 2048})
    (score,) = await judge.score([candidate(*STEPS)])
    assert score.steps == pytest.approx(by_hand(directory, judge, STEPS), abs=1e-6)
    await judge.aclose()


def without_adapter(directory: Path) -> None:
    for path in directory.glob("adapter_*"):
        path.unlink()


async def test_without_an_adapter_the_base_itself_reads(directory: Path) -> None:
    without_adapter(directory)
    judge = open_judge("prm", str(directory), {"kv_tokens": 2048})
    (score,) = await judge.score([candidate(*STEPS)])
    base = LlamaForCausalLM.from_pretrained(directory.parent / "base", dtype=torch.float32)
    head = load_file(directory / "head.safetensors")
    assert judge.info.parameters == base.num_parameters() + head["weight"].numel() + 2
    assert len(score.steps) == len(STEPS)
    await judge.aclose()


async def test_values_are_those_computed_by_hand(directory: Path, judge: ReadingJudge) -> None:
    (score,) = await judge.score([candidate(*STEPS)])
    expected = by_hand(directory, judge, STEPS)
    assert score.steps == pytest.approx(expected, abs=1e-5)
    assert score.value == score.steps[-1]
    assert len({round(value, 3) for value in expected}) == 3


async def test_steps_judged_one_after_the_other_are_the_same(
    directory: Path, judge: ReadingJudge
) -> None:
    expected = by_hand(directory, judge, STEPS)
    claim = await judge.open(MESSAGES)
    for count in (1, 2, 3):
        (score,) = await judge.score([candidate(*STEPS[:count], claim=claim)])
        assert score.steps == pytest.approx(expected[:count], abs=1e-5)
    claim.release()


async def test_what_is_known_is_not_computed_again(judge: ReadingJudge) -> None:
    claim = await judge.open(MESSAGES)
    first, again = [(await judge.score([candidate(*STEPS, claim=claim)]))[0] for _ in range(2)]
    assert again.steps == first.steps
    assert (first.tokens_computed > 0, again.tokens_computed) == (True, 0)
    (other,) = await judge.score([candidate(*STEPS[:2], "three.", claim=claim)])
    assert other.steps[:2] == first.steps[:2]
    assert 0 < other.tokens_computed < 8
    assert other.steps[2] != first.steps[2]
    claim.release()


async def test_a_longer_prefix_costs_only_its_new_tokens(judge: ReadingJudge) -> None:
    costs = []
    for count in (1, 2, 3):
        (score,) = await judge.score([candidate(*STEPS[:count])])
        costs.append(score.tokens_computed)
    fresh = [len(judge._runtime.tokenizer.encode(step)) for step in STEPS]
    assert costs[1:] == [1 + count for count in fresh[1:]]  # the token in front, for its logits
    assert costs[0] > fresh[0]
    assert judge.stats().tokens_computed == sum(costs)


async def test_equal_candidates_are_computed_once(judge: ReadingJudge) -> None:
    scores = await judge.score([candidate(*STEPS), candidate("x\n\n"), candidate(*STEPS)])
    assert scores[0].steps == scores[2].steps
    assert scores[2].tokens_computed == 0
    assert judge.stats().tokens_computed == sum(score.tokens_computed for score in scores)


async def test_a_batch_is_in_order_and_equals_single_scores(directory: Path) -> None:
    batch = [candidate(*STEPS[:n], f"{i}.") for i, n in enumerate((0, 2, 1, 3, 0, 1))]
    together = open_judge("prm", str(directory), {"kv_tokens": 2048, "chunk_tokens": 16})
    scores = await together.score(batch)
    await together.aclose()
    for one, score in zip(batch, scores, strict=True):
        alone = open_judge("prm", str(directory), {"kv_tokens": 2048})
        (expected,) = await alone.score([one])
        assert score.steps == pytest.approx(expected.steps, abs=1e-5)
        assert len(score.steps) == len(one.steps)
        await alone.aclose()


async def test_tenants_share_neither_pages_nor_values(judge: ReadingJudge) -> None:
    claims = [await judge.open(MESSAGES, tenant=tenant) for tenant in ("a", "b")]
    scores = [(await judge.score([candidate(*STEPS, claim=claim)]))[0] for claim in claims]
    assert scores[0].steps == pytest.approx(scores[1].steps, abs=1e-6)
    assert scores[0].tokens_computed == scores[1].tokens_computed > 0
    for claim in claims:
        claim.release()


async def test_claims_record_and_are_released(judge: ReadingJudge) -> None:
    await judge.score([candidate(*STEPS)])
    claim = await judge.open(MESSAGES)
    assert judge.stats().pages_claimed > 0
    longer = claim.extend((1, 2, 3))
    fork = longer.fork()
    assert fork.token_ids == (*claim.token_ids, 1, 2, 3)
    for one in (claim, longer, fork, fork):
        one.release()
    require_idle(judge)


async def test_too_long_or_unreadable_scores_nan_and_the_rest_stands(
    judge: ReadingJudge,
) -> None:
    long = candidate("x" * 400)
    wordy = candidate("x", messages=({"role": "user", "content": "y" * 400},))
    broken = candidate("x", messages=({"role": "user", "content": [1]},))
    scores = await judge.score([long, candidate("fine."), wordy])
    assert [math.isnan(score.value) for score in scores] == [True, False, True]
    assert scores[0].steps == ()
    assert len(await judge.score([broken])) == 1


async def test_an_answer_without_steps_is_worth_the_least(judge: ReadingJudge) -> None:
    (score,) = await judge.score([candidate()])
    assert (score.value, score.steps, score.tokens_computed) == (0.0, (), 0)
    assert await judge.score([]) == []


async def test_an_empty_step_keeps_its_place(judge: ReadingJudge) -> None:
    (score,) = await judge.score([candidate("", "one\n\n", "", "two.")])
    (plain,) = await judge.score([candidate("one\n\n", "two.")])
    assert len(score.steps) == 4
    assert score.steps[1:] == (plain.steps[0], plain.steps[0], plain.steps[1])
    assert math.isfinite(score.steps[0])  # what the prompt alone is worth


@pytest.mark.parametrize("with_claim", [True, False])
async def test_a_closed_judge_says_so(directory: Path, with_claim: bool) -> None:
    judge = open_judge("prm", str(directory), {"kv_tokens": 2048})
    claim = await judge.open(MESSAGES) if with_claim else None
    await judge.aclose()
    await judge.aclose()
    with pytest.raises(RewardUnavailable, match="prm"):
        await judge.score([candidate(*STEPS, claim=claim)])
    require_idle(judge)


async def test_a_failing_forward_is_unavailable_and_passes(
    judge: ReadingJudge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(judge._runtime.decoder, "forward", broken)
        with pytest.raises(RewardUnavailable, match="gone") as caught:
            await judge.score([candidate(*STEPS)])
    assert isinstance(caught.value.__cause__, EngineError)
    assert "a step of the engine failed" in caplog.text
    (score,) = await judge.score([candidate(*STEPS)])
    assert math.isfinite(score.value)


async def test_the_memory_is_bounded(judge: ReadingJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_models.readings._MAX_REMEMBERED", 2)
    (first,) = await judge.score([candidate(*STEPS)])
    assert len(judge._readings) == 2
    (again,) = await judge.score([candidate(*STEPS)])
    assert again.steps == pytest.approx(first.steps, abs=1e-6)


def refusal(directory: Path, kind: type[Exception] = RewardLoadError) -> str:
    with pytest.raises(kind) as caught:
        open_judge("prm", str(directory), {"kv_tokens": 2048})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["bough.json", "adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
)
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert name in refusal(directory)


def test_a_card_without_a_base(directory: Path) -> None:
    (directory / "bough.json").write_text("{}")
    assert "'base' is missing" in refusal(directory)


def test_a_base_that_is_not_there(directory: Path) -> None:
    (directory / "bough.json").write_text(json.dumps({"base": "../nowhere"}))
    assert "nowhere" in refusal(directory, ModelLoadError)


def without_bias(head: dict[str, torch.Tensor]) -> None:
    del head["bias"]


def wider(head: dict[str, torch.Tensor]) -> None:
    head["weight"] = torch.zeros(1, 33)


def unfinished(head: dict[str, torch.Tensor]) -> None:
    head["weight"][0, 3] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "named"), [(without_bias, "bias"), (wider, "weight"), (unfinished, "weight")]
)
def test_a_head_that_does_not_fit_is_named(
    directory: Path, spoil: Callable[[dict[str, torch.Tensor]], None], named: str
) -> None:
    path = directory / "head.safetensors"
    head = load_file(path)
    spoil(head)
    save_file(head, path)
    text = refusal(directory)
    assert "head.safetensors" in text
    assert named in text


def test_unknown_options_are_refused(directory: Path) -> None:
    with pytest.raises(ModelLoadError, match="nonsense"):
        open_judge("prm", str(directory), {"nonsense": 1})
