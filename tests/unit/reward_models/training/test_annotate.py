"""Annotation: what a judge is asked, how often, and what becomes of its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.base import ChatMessage, TokenIds
from engines.embedded.tokenizer import ChatTokenizer
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.errors import RewardUnavailable
from reward_models.multifurcation import Dialogue
from reward_models.training.annotate import Answer, Reader, annotate, answer_of
from reward_models.training.errors import TrainingError
from reward_models.training.token_rewards import TokenRewards
from tests.contract.tiny_llama import write_tiny_llama

ASK: tuple[ChatMessage, ...] = ({"role": "user", "content": "the cat"},)
BEGUN: tuple[ChatMessage, ...] = (*ASK, {"role": "assistant", "content": "on "})


class CountingClaim:
    """Holds nothing; counts how many are out."""

    def __init__(self, judge: LengthJudge) -> None:
        self.judge = judge
        self.token_ids: TokenIds = ()
        judge.num_open += 1

    def fork(self) -> CountingClaim:
        return CountingClaim(self.judge)

    def extend(self, ids: TokenIds) -> CountingClaim:
        return self.fork()

    def release(self) -> None:
        self.judge.num_open -= 1


class LengthJudge:
    """Worth a text's letters, ten more when it is finished; with an é in it, nothing."""

    def __init__(self, shows_prefill: bool = False) -> None:
        self.info = RewardInfo("length", RewardKind.OUTCOME, shows_prefill=shows_prefill)
        self.num_open = 0
        self.batches: list[list[Candidate]] = []
        self.is_gone = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        return CountingClaim(self)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        if self.is_gone:
            raise RewardUnavailable("gone")
        self.batches.append(list(batch))
        return [
            Score(math.nan if "é" in one.text else len(one.text) + 10.0 * one.is_finished)
            for one in batch
        ]

    def stats(self) -> RewardStats:
        return RewardStats()

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def reader(tokenizer: ChatTokenizer) -> Reader:
    return Reader(tokenizer, Dialogue(tokenizer, (), True), frozenset({0}))


async def annotated(
    judge: LengthJudge, answers: Sequence[Answer], reader: Reader, **how: int
) -> list[TokenRewards]:
    return [text async for text in annotate(judge, answers, reader, **how)]


def drawn(tokenizer: ChatTokenizer, name: str, text: str, *, ends: bool = True) -> Answer:
    ids = tokenizer.encode(text) + ((0,) if ends else ())
    return Answer(name, "train", ASK, ids)


async def test_every_token_has_the_reward_of_the_answer_up_to_it(
    tokenizer: ChatTokenizer, reader: Reader
) -> None:
    judge = LengthJudge()
    (text,) = await annotated(judge, [drawn(tokenizer, "a", "sat on a log")], reader)
    prompt = reader.dialogue.prompt(ASK)
    answer = text.token_ids[len(prompt) :]
    assert text.token_ids[: len(prompt)] == prompt
    assert all(map(math.isnan, text.rewards[: len(prompt)]))
    for length, reward in enumerate(text.rewards[len(prompt) : -1], 1):
        assert reward == len(tokenizer.decode(answer[:length]))
    assert answer[-1] == 0
    assert text.rewards[-1] == len("sat on a log") + 10  # the end is labelled: it is never unseen
    assert judge.num_open == 0


async def test_what_is_asked_is_the_text_and_never_the_end_token(
    tokenizer: ChatTokenizer, reader: Reader
) -> None:
    judge = LengthJudge()
    await annotated(judge, [drawn(tokenizer, "a", "a log")], reader)
    (batch,) = judge.batches
    assert all(one.messages == ASK and one.claim is not None for one in batch)
    assert all(one.text == tokenizer.decode(one.token_ids) for one in batch)
    assert all(0 not in one.token_ids for one in batch)
    assert [one.is_finished for one in batch] == [False] * (len(batch) - 1) + [True]


async def test_shared_beginnings_are_judged_once(tokenizer: ChatTokenizer, reader: Reader) -> None:
    judge = LengthJudge()
    answers = [drawn(tokenizer, str(n), "the mat and the dog") for n in range(3)]
    texts = await annotated(judge, answers, reader)
    assert len(texts) == 3
    assert len({one.rewards[-1] for one in texts}) == 1
    assert sum(map(len, judge.batches)) == len(answers[0].token_ids)


async def test_batches_change_no_reward(tokenizer: ChatTokenizer, reader: Reader) -> None:
    words = ["the cat", "the dog sat", "the cat sat on", "a log", "and"]
    answers = [drawn(tokenizer, word, word, ends=len(word) % 2 == 0) for word in words]
    small, large = LengthJudge(), LengthJudge()
    found = await annotated(small, answers, reader, candidates=4)
    assert [one.to_json() for one in found] == [
        one.to_json() for one in await annotated(large, answers, reader)
    ]
    assert len(small.batches) > 2
    assert len(large.batches) == 1


async def test_what_cannot_be_judged_has_no_reward(
    tokenizer: ChatTokenizer, reader: Reader
) -> None:
    judge = LengthJudge()
    answers = [drawn(tokenizer, *one) for one in (("a", "a é"), ("b", "é"), ("c", ""))]
    found = {one.conv_id: one for one in await annotated(judge, answers, reader)}
    assert set(found) == {"a", "c"}
    assert math.isnan(found["a"].rewards[-1])
    assert found["c"].rewards[-1] == 10


async def test_texts_are_cut_and_what_has_no_room_is_left_out(
    tokenizer: ChatTokenizer, reader: Reader
) -> None:
    size = len(reader.dialogue.prompt(ASK))
    short = Reader(tokenizer, reader.dialogue, reader.end_ids, max_tokens=size + 2)
    (text,) = await annotated(LengthJudge(), [drawn(tokenizer, "a", "on the mat")], short)
    assert len(text.token_ids) == size + 2
    none = Reader(tokenizer, reader.dialogue, reader.end_ids, max_tokens=size)
    assert await annotated(LengthJudge(), [drawn(tokenizer, "a", "on the mat")], none) == []


async def test_a_judge_that_is_gone_leaves_no_claim(
    tokenizer: ChatTokenizer, reader: Reader
) -> None:
    judge = LengthJudge()
    judge.is_gone = True
    with pytest.raises(RewardUnavailable):
        await annotated(judge, [drawn(tokenizer, "a", "on")], reader)
    assert judge.num_open == 0


@pytest.mark.parametrize("shows", [True, False])
async def test_a_callers_beginning_is_read_as_the_model_will(
    tokenizer: ChatTokenizer, shows: bool
) -> None:
    reader = Reader(tokenizer, Dialogue(tokenizer, (), shows), frozenset({0}))
    answer = Answer("a", "train", BEGUN, tokenizer.encode("a log"))
    (text,) = await annotated(LengthJudge(), [answer], reader)
    read = tokenizer.decode(text.token_ids)
    assert read == f"\n\nUser:the cat\n\nAgent:{'on ' if shows else ''}a log"


@pytest.mark.parametrize(("shows", "shown"), [(True, BEGUN), (False, ASK)])
async def test_the_judge_is_shown_a_callers_beginning_only_if_it_says_so(
    tokenizer: ChatTokenizer, reader: Reader, shows: bool, shown: tuple[ChatMessage, ...]
) -> None:
    judge = LengthJudge(shows)
    await annotated(judge, [Answer("a", "train", BEGUN, tokenizer.encode("a log"))], reader)
    (batch,) = judge.batches
    assert all(one.messages == shown for one in batch)


def test_answers_come_as_tokens_or_as_text(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    about = {"conv_id": "x", "messages": list(ASK)}
    tokens = answer_of(json.dumps({**about, "token_ids": [3, 4]}), tokenizer, 0)
    assert tokens == Answer("x", "train", ASK, (3, 4))
    text = answer_of(json.dumps({**about, "content": "on", "split": "validation"}), tokenizer, 0)
    assert text == Answer("x", "validation", ASK, (*tokenizer.encode("on"), 0))
    empty = {"conv_id": "x", "messages": [], "token_ids": [3]}
    for line in ("{", "[]", '{"conv_id": "x"}', json.dumps(empty)):
        with pytest.raises(TrainingError, match="not an answer"):
            answer_of(line, tokenizer, 0)
