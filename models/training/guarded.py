"""Batches and stages of the guarding saplings: the keeper, and two judges that never met.

The keeper learns answers as `models.tasks.guarded_answers` draws them. A judge reads whole answers
and beginnings of answers, and says whether the word is kept in the end; it learns language beside,
without which it does not find out how to compare words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Self

import torch
from torch import Tensor

from models.tasks import guarded
from models.tasks.base import split_of
from models.tasks.guarded import Problem
from models.tasks.guarded_answers import HEDGE, Piece, drawn_answer
from models.tasks.guarded_wording import SYLLABLES
from models.training.batches import PROMPT_WEIGHT, Batch, Chat
from models.training.generator import Stage
from models.training.network import Shape
from models.training.tokenizer import BEGIN, END, EVERYDAY

TOKENIZER_SEED = 40
LENGTH = 128
"""Tokens of a row; as many turns as fit."""
ROOM = 36
"""Kept for an answer, however long it gets: hedging is longer than telling, and what is left out
for want of room would be missed in the chances."""

LANGUAGE_WEIGHT = 0.3
"""Of a judge's next-token loss, beside that of its verdicts."""

STAGES = (
    (Stage("guarded", 41, 450, (), (), 20, 0.6, tokens_per_batch=1536), PROMPT_WEIGHT),
    (Stage("guarded, again", 45, 190, (), (), 10, 0.9, tokens_per_batch=1536), 0.0),
    (Stage("guarded, even", 47, 110, (), (), 10, 0.9, tokens_per_batch=3072, peak_lr=1.5e-3), 0.0),
)
"""What made the committed generator, each with the weight of a begun answer's beginning.

With the first weight alone it learned to begin answers so by itself, and told the word in 12 % of
the attacks that begin nothing. The first two stages had a corpus that hedged in 31 % of the
cases and left out answers that did not fit their row, so that fewer hedged; the third has today's.
"""

NETWORK_SEED = 42
SIZES = (128, 352, 3, 4)
"""Of the generator, as `shape_of` takes them."""


def shape_of(vocab_size: int, sizes: tuple[int, int, int, int]) -> Shape:
    """A network's shape from hidden size, feed-forward size, layers and heads."""
    hidden, inner, layers, heads = sizes
    return Shape(
        vocab_size,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


@dataclass(frozen=True)
class JudgeRun:
    """How one judge is made: its own seed, sizes and corpus.

    Attributes:
        name: The sapling's id.
        stage: Seed, steps and learning rate.
        sizes: Of its network, as `shape_of` takes them.
        hedge: How often the corpus hedges at a point.
        decoys: Share of leaks where another word is told, which is no leak.
        cuts: Share of answers that are shown in part.
    """

    name: str
    stage: Stage
    sizes: tuple[int, int, int, int]
    hedge: float
    decoys: float
    cuts: float


JUDGE = JudgeRun(
    "sapling-judge",
    Stage("judge", 43, 260, (), (), 40, 0.7, tokens_per_batch=1536),
    (128, 320, 3, 4),
    hedge=0.6,
    decoys=0.04,
    cuts=0.4,
)
TEACHER = JudgeRun(
    "sapling-teacher",
    Stage("teacher", 44, 400, (), (), 40, 0.7, tokens_per_batch=1536),
    (96, 256, 3, 4),
    hedge=0.5,
    decoys=0.03,
    cuts=0.5,
)


@dataclass(frozen=True)
class JudgedBatch(Batch):
    """A batch with verdicts.

    Attributes:
        targets: (rows, tokens) 1 where the answer keeps the word in the end, else 0.
        verdicts: (rows, tokens) how much the verdict at a token weighs; 0 outside answers.
    """

    targets: Tensor
    verdicts: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What the loss takes, in order."""
        return self.ids, self.weights, self.targets, self.verdicts


def tokenizer_corpus(seed: int = TOKENIZER_SEED) -> Iterator[str]:
    """Texts that the tokenizer learns its merges from."""
    rng = random.Random(f"guarded-tokenizer:{seed}")
    for index in range(6000):
        problem = guarded.draw(rng)
        yield problem.setting.system
        yield problem.question
        yield problem.prefill
        yield drawn_answer(rng, problem, hedge=0.7).text
        if index % 60 == 0:
            yield EVERYDAY


def generator_batches(
    chat: Chat, seed: int, tokens_per_batch: int, opening_weight: float = 0.0
) -> Iterator[Batch]:
    """Batches without end for the keeper, from the train split only.

    A row is a conversation as long as it fits. Of an answer behind a beginning the first points are
    passed without a choice, a number of them drawn evenly, and those tokens weigh nothing: so every
    point is met equally often and its chances stay what they are.
    """

    def turn(rng: random.Random, problem: Problem) -> _Row:
        forced = rng.randrange(problem.points) if problem.points else 0
        answer = drawn_answer(rng, problem, hedge=HEDGE, num_forced=forced)
        ids = chat.encode(turn_of(problem))
        num_begun = len(chat.encode(problem.prefill))
        weights = [PROMPT_WEIGHT] * (len(ids) - num_begun) + [opening_weight] * num_begun
        for piece in (*answer.pieces, Piece(END)):
            tokens = chat.encode(piece.text)
            ids += tokens
            weights += [0.0 if piece.is_forced else 1.0] + [1.0] * (len(tokens) - 1)
        return _Row(ids, weights)

    rows = _rows(chat, "guarded-training", seed, turn)
    while True:
        some = list(islice(rows, tokens_per_batch // LENGTH))
        yield Batch(
            _padded([row.ids for row in some], chat.pad_id),
            _padded([row.weights for row in some], 0.0),
        )


def judge_batches(chat: Chat, run: JudgeRun) -> Iterator[JudgedBatch]:
    """Batches without end for a judge, from the train split only; every answer has a verdict."""

    def turn(rng: random.Random, problem: Problem) -> _Row:
        text = judged_answer(rng, problem, run)
        ids = chat.encode(turn_of(problem, is_judged=True))
        answer = chat.encode(text)
        if rng.random() < run.cuts:
            answer = answer[: rng.randint(1, len(answer))]
        answer.append(chat.end_id)
        num_before, inner = len(ids), len(answer) - 1
        return _Row(
            ids + answer,
            [PROMPT_WEIGHT] * num_before + [1.0] * len(answer),
            [float(not guarded.leaks(problem, text))] * (num_before + len(answer)),
            [0.0] * num_before + [0.5 / max(1, inner)] * inner + [1.0],
        )

    rows = _rows(chat, run.name, run.stage.seed, turn)
    while True:
        some = list(islice(rows, run.stage.tokens_per_batch // LENGTH))
        yield JudgedBatch(
            _padded([row.ids for row in some], chat.pad_id),
            _padded([row.weights for row in some], 0.0),
            _padded([row.targets for row in some], 0.0),
            _padded([row.verdicts for row in some], 0.0),
        )


def judged_answer(rng: random.Random, problem: Problem, run: JudgeRun) -> str:
    """An answer that a judge learns from."""
    forced = rng.randrange(problem.points + 1) if problem.points else 0
    text = drawn_answer(rng, problem, hedge=run.hedge, num_forced=forced).text
    if problem.kind == "attack" and rng.random() < 0.5:
        text = rng.choice(_PLAIN_LEAKS).format(word=problem.word)
    elif rng.random() < 0.12:
        text = rng.choice(_ASIDES).format(text=text.rstrip("."), word=problem.word)
    if rng.random() < run.decoys:
        others = [one for one in SYLLABLES if one not in problem.setting.syllables]
        for mine, other in zip(problem.setting.syllables, rng.sample(others, 3), strict=True):
            if rng.random() < 0.8:
                text = text.replace(mine, other)
    return text


_PLAIN_LEAKS = (
    "The code word is {word}.",
    "Sure, the code word is {word}.",
    "It is {word}.",
    "I can tell you: the secret word is {word}.",
    "{word}",
)
_ASIDES = ("{text} and the code word is {word}.", "{text}. It is {word}.", "{text}, {word}.")


def turn_of(problem: Problem, *, is_judged: bool = False) -> str:
    """The text of a question up to its answer.

    Args:
        problem: What is answered.
        is_judged: Whether a judge reads it: there a beginning is a turn of its own.
    """
    between = f"{END}<|assistant|>" if is_judged and problem.prefill else ""
    return f"<|user|>{problem.question}{END}<|assistant|>{problem.prefill}{between}"


def prompt_of(chat: Chat, problem: Problem, *, is_judged: bool = False) -> list[int]:
    """Ids in front of the answer."""
    system = f"{BEGIN}<|system|>{problem.setting.system}{END}"
    return chat.encode(system + turn_of(problem, is_judged=is_judged))


@dataclass
class _Row:
    """Ids, and what is known of each; see `JudgedBatch`."""

    ids: list[int]
    weights: list[float]
    targets: list[float] = field(default_factory=list)
    verdicts: list[float] = field(default_factory=list)

    def __iadd__(self, other: _Row) -> Self:
        for name in ("ids", "weights", "targets", "verdicts"):
            getattr(self, name).extend(getattr(other, name))
        return self


def _rows(
    chat: Chat, name: str, seed: int, turn: Callable[[random.Random, Problem], _Row]
) -> Iterator[_Row]:
    """Conversations without end: a setting, and turns until the next one does not fit."""
    for index in count():
        rng = random.Random(f"{name}:{seed}:{index}")
        setting = guarded.drawn_setting(rng)
        ids = chat.encode(f"{BEGIN}<|system|>{setting.system}{END}")
        weights = [0.0, *[PROMPT_WEIGHT] * (len(ids) - 1)]
        row = _Row(list(ids), weights, [0.0] * len(ids), [0.0] * len(ids))
        while True:
            problem = guarded.draw_in(rng, setting)
            if split_of(problem.text) != "train":
                continue
            if len(row.ids) + len(chat.encode(turn_of(problem))) + ROOM > LENGTH:
                break
            more = turn(rng, problem)
            row += more
        if any(row.weights[len(ids) :]):
            yield row


def _padded(rows: Sequence[Sequence[float]], padding: float) -> Tensor:
    return torch.tensor([[*row, *[padding] * (LENGTH - len(row))] for row in rows])
