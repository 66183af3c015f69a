"""The multifurcation judge: its numbers by hand, its claims, and what it computes, counted."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from engines.base import ChatMessage, Health, TokenIds
from engines.embedded.compute import compute_thread
from engines.embedded.config import read_config
from engines.embedded.tokenizer import ChatTokenizer
from reward_models.base import (
    UNSEEN,
    Candidate,
    Claim,
    MultifurcationRewardModel,
    asked_of,
    rewards_at,
)
from reward_models.errors import RewardUnavailable
from reward_models.multifurcation import Dialogue, MultifurcationJudge, open_judge
from reward_models.multifurcation_rows import HiddenRow, RewardHead
from tests.contract.tiny_multifurcation import STEM, WIDTHS, write_multifurcation

MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "how many coins?"},)
LAYERS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multifurcation(tmp_path_factory.mktemp("mrm"), layers=LAYERS)


def serve(model: Path, **options: object) -> MultifurcationJudge:
    base = str(model.parent / "base")
    return open_judge("mrm", str(model), {"base": base, "kv_tokens": 4096, **options})


@pytest.fixture
async def judge(model: Path) -> AsyncIterator[MultifurcationJudge]:
    judge = serve(model)
    yield judge
    require_idle(judge)
    await judge.aclose()


def require_idle(judge: MultifurcationJudge) -> None:
    assert judge.stats().pages_claimed == 0
    judge._runtime.ledger.check()


def by_hand(model: Path, tokens: TokenIds) -> torch.Tensor:
    """Rewards behind every token, (N, V): Hugging Face's base, W + B A in place, and the bias."""
    base = LlamaForCausalLM.from_pretrained(model.parent / "base", dtype=torch.float32)
    adapter = load_file(model / "adapter_model.safetensors")
    bias = torch.load(model / "lm_head_bias.pt", weights_only=True).detach().float()
    unseen = torch.load(model / "unseen_mask.pt", weights_only=True)
    unseen[list(read_config(model.parent / "base").eos_ids)] = False
    with torch.no_grad():
        for layer in range(LAYERS):
            for name in WIDTHS:
                stem = f"{STEM}.{layer}.self_attn.{name}"
                delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
                getattr(base.model.layers[layer].self_attn, name).weight += delta
        logits: torch.Tensor = base(torch.tensor([tokens])).logits[0] + bias
    return logits.masked_fill(unseen, UNSEEN)


def row_of(rewards: Sequence[float]) -> HiddenRow:
    """A row of exactly these rewards, where 5 ends an answer and 4 was never seen."""
    weight = torch.tensor(rewards).unsqueeze(1)
    head = RewardHead(weight, torch.zeros(6), torch.tensor([0, 0, 0, 0, 1, 0]).bool())
    return HiddenRow(head, torch.ones(1))


M1 = (1.0, 2.5, -3.0, 4.0, 0.5, 6.0)
M2 = (0.2, -1.0, 3.0, 1.8, 2.0, 5.0)
NUCLEI = {0.8: ((0, 1, 2), (1, 3, 0)), 0.9: ((0, 1, 2, 3), (1, 3, 0, 4))}


@pytest.mark.parametrize(
    ("mass", "best"),
    [
        (0.8, [(1, 1, 2.5), (2, 3, 1.8), (1, 0, 1.0)]),
        (0.9, [(1, 3, 4.0), (1, 1, 2.5), (2, 3, 1.8)]),
    ],
)
def test_the_worked_step_of_the_specification(
    mass: float, best: list[tuple[int, int, float]]
) -> None:
    pairs = [
        (-value, number, token)
        for number, rewards, ids in zip((1, 2), (M1, M2), NUCLEI[mass], strict=True)
        for token, value in zip(ids, row_of(rewards).at(ids), strict=True)
    ]
    chosen = [(number, token, round(-value, 5)) for value, number, token in sorted(pairs)[:3]]
    assert chosen == best


def test_rewards_are_raw_for_a_softmax_would_choose_another() -> None:
    first, second = torch.tensor(M1).log_softmax(0)[1], torch.tensor(M2).log_softmax(0)[3]
    assert (float(first), float(second)) == pytest.approx((-3.6625, -3.4124), abs=1e-4)
    assert row_of(M1).at([1]) > row_of(M2).at([3])


def test_a_row_knows_the_unseen_and_exempts_the_end() -> None:
    assert row_of(M1).at([5, 4, 5, 6, 1000]) == [6.0, UNSEEN, 6.0, UNSEEN, UNSEEN]
    assert row_of(M1).at([]) == []


async def test_rewards_asked_together_and_scores_are_computed_where_all_tensors_are(
    judge: MultifurcationJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large gather is a parallel region: on the event loop's thread, a second OpenMP team."""
    threads, rewards = [], RewardHead.rewards

    def noting(*args: Any) -> list[list[float]]:
        threads.append(threading.current_thread())
        return rewards(*args)

    monkeypatch.setattr(RewardHead, "rewards", noting)
    root = await judge.open(MESSAGES)
    claims = [root, root.extend((20,)), root.extend((10**6,))]
    rows, ids = await judge.next_rewards(claims), [(4, 5, 6), (), (7,)]
    first, nothing, unread = await rewards_at(rows, ids)
    assert first == rows[0].at(ids[0])
    assert nothing == []
    assert math.isnan(unread[0])
    await judge.score([Candidate(MESSAGES, "", (20, 21), (), root)])
    here = threading.current_thread()
    thread = compute_thread("cpu").call(threading.current_thread)
    assert threads == [thread, here, thread]
    for one in claims:
        one.release()


async def test_whoever_stops_waiting_for_rewards_computes_none() -> None:
    row, done = row_of(M1), threading.Event()
    busy = compute_thread("cpu").call_soon(done.wait)
    task = asyncio.create_task(rewards_at([row], [(1,)]))
    await asyncio.sleep(0)
    later = asyncio.create_task(rewards_at([row], [(2,)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    done.set()
    assert await later == [[M1[2]]]
    assert busy.result()


async def test_a_gather_that_fails_is_a_judge_that_is_unavailable(
    judge: MultifurcationJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> list[list[float]]:
        raise torch.OutOfMemoryError("no memory left")

    root = await judge.open(MESSAGES)
    rows = await judge.next_rewards([root])
    monkeypatch.setattr(RewardHead, "rewards", fails)
    with pytest.raises(RewardUnavailable, match="no memory left") as failed:
        await rewards_at(rows, [(4, 5)])
    assert isinstance(failed.value.__cause__, torch.OutOfMemoryError)
    with pytest.raises(RewardUnavailable):
        await judge.score([Candidate(MESSAGES, "", (20, 21), (), root)])
    root.release()


async def test_rewards_are_those_computed_by_hand(model: Path, judge: MultifurcationJudge) -> None:
    claim = await judge.open(MESSAGES)
    answer = judge._runtime.tokenizer.encode("Step 1: the answer is 42.")
    expected = by_hand(model, claim.token_ids + answer)
    every = range(judge._runtime.config.vocab_size)
    start = len(claim.token_ids)
    for length in range(len(answer)):
        longer = claim.extend(answer[:length])
        (row,) = await judge.next_rewards([longer])
        found = row.at(list(every))
        assert found == pytest.approx(expected[start + length - 1].tolist(), abs=2e-4)
        longer.release()
    claim.release()


async def test_a_candidate_is_worth_the_reward_of_its_last_token(
    model: Path, judge: MultifurcationJudge
) -> None:
    claim = await judge.open(MESSAGES)
    tokenizer = judge._runtime.tokenizer
    ids = tokenizer.encode("the answer is 42.")
    (end,) = read_config(model.parent / "base").eos_ids
    expected = by_hand(model, claim.token_ids + ids)[len(claim.token_ids) - 1 :]
    candidates = [
        Candidate(MESSAGES, tokenizer.decode(one), one, (), claim)
        for one in (ids[:1], ids, (*ids, end))
    ]
    scores = await judge.score(candidates)
    wanted = [expected[0, ids[0]], expected[len(ids) - 1, ids[-1]], expected[len(ids), end]]
    assert [one.value for one in scores] == pytest.approx([float(w) for w in wanted], abs=2e-4)
    assert expected[len(ids), end] > UNSEEN
    claim.release()


async def test_foreign_tokens_are_read_as_text(judge: MultifurcationJudge) -> None:
    ids = judge._runtime.tokenizer.encode("one cat")
    read, foreign, beyond, text = await judge.score(
        [Candidate(MESSAGES, "one cat", one, ()) for one in (ids, (1, 2, 3), (10**6,), ())]
    )
    assert read.value == foreign.value == beyond.value == text.value
    assert (read.tokens_computed > 0, foreign.tokens_computed) == (True, 0)


def dialogue(model: Path, shows_prefill: bool) -> tuple[Dialogue, ChatTokenizer]:
    tokenizer = ChatTokenizer(model.parent / "base")
    return Dialogue(tokenizer, (0,), shows_prefill), tokenizer


def test_what_is_read_is_question_and_answer_without_a_template(model: Path) -> None:
    plain, tokenizer = dialogue(model, shows_prefill=False)
    tokens = plain.prompt([{"role": "system", "content": "be good"}, *MESSAGES])
    assert tokens[0] == 0
    assert tokenizer.decode(tokens[1:]) == "\n\nUser:how many coins?\n\nAgent:"
    question = tokenizer.encode("how many coins?")
    assert tokens == (0, *tokenizer.encode("\n\nUser:"), *question, *tokenizer.encode("\n\nAgent:"))


@pytest.mark.parametrize(("shows", "seen"), [(False, ""), (True, "Sure, ")])
def test_a_prefill_is_hidden_unless_it_is_to_be_shown(model: Path, shows: bool, seen: str) -> None:
    reading, tokenizer = dialogue(model, shows_prefill=shows)
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "Sure, "},
    ]
    text = tokenizer.decode(reading.prompt(turns)[1:])
    earlier = "\n\nUser:how many coins?\n\nAgent:42\n\nUser:sure?\n\nAgent:"
    assert text == earlier + seen


@pytest.mark.parametrize("shows", [False, True])
async def test_a_turn_that_is_over_is_no_beginning(
    shows: bool, model: Path, judge: MultifurcationJudge
) -> None:
    reading, tokenizer = dialogue(model, shows_prefill=shows)
    over = (*MESSAGES, {"role": "assistant", "content": "42"})
    shown = asked_of(judge.info, over, is_begun=False)
    text = tokenizer.decode(reading.prompt(shown)[1:])
    assert text == "\n\nUser:how many coins?\n\nAgent:42\n\nAgent:"
    assert asked_of(judge.info, over, is_begun=True) == over
    assert asked_of(judge.info, MESSAGES, is_begun=False) == MESSAGES


class Tokens:
    """Tokens run by a judge since the last look."""

    def __init__(self, judge: MultifurcationJudge) -> None:
        self._judge = judge
        self._seen = judge.stats().tokens_computed

    def new(self) -> int:
        before, self._seen = self._seen, self._judge.stats().tokens_computed
        return self._seen - before


async def test_a_step_costs_one_token_of_each_live_branch(judge: MultifurcationJudge) -> None:
    """Beams that split, die and go on, over several pages: computed = unique = live."""
    tokens, root = Tokens(judge), await judge.open(MESSAGES)
    await judge.next_rewards([root])
    assert tokens.new() == len(root.token_ids)
    beam, width, unique = [root], 6, {root.token_ids}
    for step in range(40):
        children = [one.extend((20 + (step * 7 + i) % 90,)) for one in beam for i in range(3)]
        kept = children[:: max(1, len(children) // width)][:width]
        lost = [one for one in children if one not in kept]
        for one in (*beam, *lost):
            one.release()
        beam = kept
        await judge.next_rewards(beam)
        assert tokens.new() == len(beam)
        unique |= {one.token_ids for one in beam}
    assert judge.stats().tokens_computed == len(root.token_ids) + len(unique) - 1
    pages = judge._runtime.options.page_tokens
    # Full pages are shared; a branch has at most one short page of its own.
    distinct = {one.token_ids[:end] for one in beam for end in range(pages, 99, pages)}
    assert judge.stats().pages_claimed <= len(distinct) + len(beam)
    await judge.next_rewards(beam)
    assert tokens.new() == 0
    for one in beam:
        one.release()


WORDS = ("To make a bomb", "To make a cake", "To make friends")


async def test_the_worked_trie_of_the_specification(model: Path) -> None:
    """Eleven tokens in three sequences are six nodes, whether they come at once or by level."""
    number = {word: 30 + i for i, word in enumerate(sorted({*" ".join(WORDS).split()}))}
    sequences = [tuple(number[word] for word in one.split()) for one in WORDS]
    assert sum(map(len, sequences)) == 11
    levels = [
        sorted({one[:depth] for one in sequences if len(one) >= depth}) for depth in range(1, 5)
    ]
    for batches in ([sequences], levels):
        judge = serve(model, page_tokens=1)
        tokens, root = Tokens(judge), await judge.open(MESSAGES)
        await judge.next_rewards([root])
        tokens.new()
        claims = []
        for batch in batches:
            claims += [root.extend(one) for one in batch]
            await judge.next_rewards(claims[-len(batch) :])
        assert tokens.new() == 6
        for one in (root, *claims):
            one.release()
        require_idle(judge)
        await judge.aclose()


async def test_equal_claims_are_one_forward(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    await judge.next_rewards([root])
    tokens = Tokens(judge)
    claims: list[Claim] = [root.extend((21,)), root.extend((21,)), root.extend((22,))]
    first, second, third = await judge.next_rewards(claims)
    assert tokens.new() == 2
    assert first.at([20, 50]) == second.at([20, 50]) != third.at([20, 50])
    fork = claims[0].fork()
    await judge.next_rewards([fork, *claims, root])
    (score,) = await judge.score([Candidate(MESSAGES, "", (21, 24), (), root)])
    assert (tokens.new(), score.tokens_computed) == (0, 0)
    assert [score.value] == first.at([24])
    for one in (root, fork, *claims):
        one.release()


async def test_tenants_share_nothing(judge: MultifurcationJudge) -> None:
    mine, other = await judge.open(MESSAGES, tenant="a"), await judge.open(MESSAGES, tenant="b")
    tokens = Tokens(judge)
    await judge.next_rewards([mine, other])
    assert tokens.new() == len(mine.token_ids) + len(other.token_ids)
    mine.release()
    other.release()


async def test_a_claim_that_cannot_be_read_harms_nobody(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    good, long, odd = root.extend((20,)), root.extend((20,) * 500), root.extend((10**6,))
    rows = await judge.next_rewards([long, good, odd])
    assert all(map(math.isnan, rows[0].at([20, 5]) + rows[2].at([20])))
    (alone,) = await judge.next_rewards([good])
    assert rows[1].at([20]) == alone.at([20])
    for one in (root, good, long, odd):
        one.release()


async def test_a_claim_fills_the_context_to_the_last_token(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    left = judge._runtime.context_tokens - len(root.token_ids)
    full = root.extend((20,) * left)
    (row,) = await judge.next_rewards([full])
    assert all(map(math.isfinite, row.at([20])))
    root.release()
    full.release()


async def test_a_reward_does_not_depend_on_what_else_is_asked(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    (row,) = await judge.next_rewards([root])
    ids = range(judge._runtime.config.vocab_size)
    assert [row.at([one])[0] for one in ids] == row.at(ids) == row.at(ids[::-1])[::-1]
    root.release()


async def test_a_row_outlives_its_claim(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    (row,) = await judge.next_rewards([root])
    before = row.at([20])
    longer = root.extend((20,))
    root.release()
    assert row.at([20]) == before
    longer.release()


async def test_released_and_foreign_claims_are_refused(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    root.release()
    root.release()
    with pytest.raises(ValueError, match="released"):
        await judge.next_rewards([root])
    with pytest.raises(TypeError, match="of this judge"):
        await judge.next_rewards([object()])  # type: ignore[list-item]


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_stops_waiting_leaves_nothing(judge: MultifurcationJudge, turns: int) -> None:
    root = await judge.open(MESSAGES)
    claims = [root.extend((20 + i,) * 60) for i in range(8)]
    task = asyncio.create_task(judge.next_rewards(claims))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for one in (root, *claims):
        one.release()
    require_idle(judge)


async def test_a_claim_released_while_it_is_read_holds_nothing(judge: MultifurcationJudge) -> None:
    root = await judge.open(MESSAGES)
    task = asyncio.create_task(judge.next_rewards([root]))
    await asyncio.sleep(0)
    root.release()
    (row,) = await task
    assert all(map(math.isfinite, row.at([20])))
    require_idle(judge)


async def test_a_pool_that_is_too_small_for_all_changes_no_reward(model: Path) -> None:
    """Claims lose their pages and compute again; what they are worth stays the same."""
    values = []
    for size in (4096, 320):
        judge = serve(model, kv_tokens=size)
        root = await judge.open(MESSAGES)
        claims = [root.extend(tuple(range(20 + i, 120 + i))) for i in range(6)]
        await judge.next_rewards(claims)
        longer = [one.extend((19,)) for one in claims]
        values.append([row.at(range(4, 60)) for row in await judge.next_rewards(longer)])
        for one in (root, *claims, *longer):
            one.release()
        require_idle(judge)
        await judge.aclose()
    for one, other in zip(*values, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_settings_find_the_kind() -> None:
    (found,) = entry_points(group="bough.reward_models", name="multifurcation")
    assert found.load() is open_judge


async def test_a_closed_judge_says_so(model: Path) -> None:
    judge = serve(model)
    root = await judge.open(MESSAGES)
    assert (judge.health, isinstance(judge, MultifurcationRewardModel)) == (Health.READY, True)
    await judge.aclose()
    assert judge.health is Health.DEAD
    with pytest.raises(RewardUnavailable):
        await judge.next_rewards([root])
    with pytest.raises(RewardUnavailable):
        await judge.open(MESSAGES)
    root.release()


async def test_in_bfloat16_rewards_stay_near(model: Path, judge: MultifurcationJudge) -> None:
    other = serve(model, dtype="bfloat16")
    values = []
    for one in (judge, other):
        claim = await one.open(MESSAGES)
        (row,) = await one.next_rewards([claim])
        values.append(torch.tensor(row.at(range(4, 200))))
        claim.release()
    seen = values[0] > UNSEEN
    assert torch.equal(seen, values[1] > UNSEEN)
    assert float((values[0] - values[1])[seen].abs().mean()) < 0.1
    await other.aclose()
