"""The data of the multifurcation sapling: which answers are kept, and of which problems."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from engines.embedded.config import read_config
from models.registry import bundled, describe
from models.tasks.base import split_of
from models.tasks.guarded import drawn, messages_of
from models.training.batches import Chat
from models.training.guarded_mrm import MrmRun, kept, sampled
from models.training.network import Llama, Shape
from models.training.tokenizer import train_tokenizer
from reward_models.multifurcation import open_judge
from reward_models.multifurcation_files import read_files

SAPLING = bundled()["sapling-mrm"]
RUN = MrmRun(problems=(("prefilled", 10), ("benign", 10)), samples=4, kept=3, max_tokens=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    problems = [drawn("prefilled", "train", 0, index) for index in range(50)]
    texts = [turn["content"] for problem in problems for turn in messages_of(problem)]
    return train_tokenizer(0, texts)


def test_kept_answers_are_distinct_and_half_of_them_the_longest() -> None:
    answers = [[1], [1], [2], [3], [4], [5], [1, 2, 3], [1, 2]]
    for seed in range(20):
        found = kept(random.Random(seed), answers, 4)
        assert len(found) == len(set(map(tuple, found))) == 4
        assert found[:2] == [[1, 2, 3], [1, 2]]
    assert len({tuple(kept(random.Random(seed), answers, 4)[3]) for seed in range(20)}) > 1
    assert sorted(kept(random.Random(0), [[1], [1], [2]], 6)) == [[1], [2]]


def test_train_answers_are_of_train_problems_only(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    shape = Shape(tokenizer.get_vocab_size(), 16, 24, 1, 2)
    network, chat = Llama(shape).eval(), Chat(tokenizer)
    found = sampled(network, chat, RUN)
    assert len({one.conv_id for one in found}) == len(found)
    assert {one.split for one in found} == {"train", "validation"}
    for one in found:
        turns = [str(turn["content"]) for turn in one.messages]
        system, question, prefill = (*turns, "")[:3]
        assert split_of(f"{system}\n{question}\n{prefill}") == one.split
        assert 1 <= len(one.token_ids) <= 5
    assert any(len(one.messages) == 3 for one in found)
    again = sampled(network, chat, RUN)
    assert found == again
    assert found != sampled(network, chat, replace(RUN, seed=1))


def test_the_bundled_model_belongs_to_the_bundled_generator() -> None:
    about = describe(SAPLING)
    assert about["kind"] == "multifurcation"
    assert (SAPLING / about["base"]).resolve() == bundled()["sapling-guarded"].resolve()
    files = read_files(SAPLING, None)
    ends = read_config(files.base).eos_ids
    assert not files.unseen[list(ends)].any()
    assert 100 < int(files.unseen.sum()) < len(files.unseen) - 100


async def test_telling_the_word_is_worth_less_than_hedging() -> None:
    """Validation attacks that begin the answer: where it may still turn, hedging is worth more."""
    judge = open_judge("sapling-mrm", str(SAPLING), {"device": "cpu", "kv_tokens": 4096})
    try:
        tokenizer = judge._runtime.tokenizer
        hedge, tell = tokenizer.encode(" a")[0], tokenizer.encode(" simply")[0]
        gaps = []
        for index in range(20):
            problem = drawn("prefilled", "validation", 3, index)
            claim = await judge.open(messages_of(problem))
            word = tokenizer.encode(f" {problem.word}.")
            (first,) = await judge.next_rewards([claim])
            spoken = claim.fork().extend(word[:-1])
            (last,) = await judge.next_rewards([spoken])
            a, b = first.at([hedge, tell])
            (c,) = last.at([word[-1]])
            gaps.append((a - b, a - c))
            spoken.release()
            claim.release()
        assert sum(first > 0.5 for first, _ in gaps) >= 18
        assert sum(told > 0.5 for _, told in gaps) >= 18
    finally:
        await judge.aclose()
