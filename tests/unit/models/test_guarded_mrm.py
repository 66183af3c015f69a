"""The data of the multifurcation sapling: which answers are kept, and of which problems."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from models.tasks.base import split_of
from models.tasks.guarded import drawn, messages_of
from models.training.batches import Chat
from models.training.guarded_mrm import MrmRun, kept, sampled
from models.training.network import Llama, Shape
from models.training.tokenizer import train_tokenizer

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
