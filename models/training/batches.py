"""Training batches: drawn problems rendered as chats, grouped by length, padded on the right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.tasks import sums
from models.tasks.base import draw_in_split, solution_of
from models.training.tokenizer import BEGIN, END, PAD

LENGTHS = (112, 144, 176, 208, 256)
"""Rows are padded to the least of these that holds them; longer ones are left out."""

PROMPT_WEIGHT = 0.05
"""Loss weight of a prompt token; its numbers are random, so there is little to learn."""

_SYSTEM_SHARE = 0.06
_SYSTEM = (
    "You are a careful assistant.",
    "You are a helpful assistant.",
    "Think step by step.",
    "Write one step per line, then the answer.",
    "Please solve this problem step by step and answer with one number.",
)


@dataclass(frozen=True)
class Batch:
    """Token ids (rows, tokens) and the weight with which each is to be predicted."""

    ids: Tensor
    weights: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What the loss takes, in order."""
        return self.ids, self.weights


class Chat:
    """Renders chats to token ids exactly as the chat template does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look up once the tokens that are asked for by name."""
        self._tokenizer = tokenizer
        (self.pad_id,) = self.encode(PAD)
        (self.begin_id,) = self.encode(BEGIN)
        (self.end_id,) = self.encode(END)
        (self.newline_id,) = self.encode("\n")

    def prompt(self, text: str, system: str | None = None) -> list[int]:
        """Ids of a conversation that waits for the assistant."""
        before = "" if system is None else f"<|system|>{system}{END}"
        return self.encode(f"{BEGIN}{before}<|user|>{text}{END}<|assistant|>")

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens are read as such."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


@dataclass
class _Bucket:
    rows: list[tuple[list[int], int]] = field(default_factory=list)


def sums_batches(
    chat: Chat,
    seed: int,
    tokens_per_batch: int,
    levels: tuple[sums.Level, ...],
    shares: tuple[float, ...],
) -> Iterator[Batch]:
    """Batches without end, from the train split only; no problem is drawn twice on purpose.

    Args:
        chat: the tokenizer.
        seed: of all draws.
        tokens_per_batch: padding included.
        levels: how hard the problems are.
        shares: how often each level is drawn.
    """
    rng = random.Random(f"batches:{seed}")
    buckets = {length: _Bucket() for length in LENGTHS}
    index = 0
    while True:
        (level,) = rng.choices(levels, shares)
        problem = draw_in_split(
            "sums-training", partial(sums.draw, level=level), "train", seed, index
        )
        index += 1
        system = rng.choice(_SYSTEM) if rng.random() < _SYSTEM_SHARE else None
        prompt = chat.prompt(problem.text, system)
        row = [*prompt, *chat.encode(solution_of(problem)), chat.end_id]
        length = next((length for length in LENGTHS if len(row) <= length), None)
        if length is None:
            continue
        bucket = buckets[length]
        bucket.rows.append((row, len(prompt)))
        if len(bucket.rows) == tokens_per_batch // length:
            yield pad_rows(bucket.rows, length, chat.pad_id)
            bucket.rows = []


def pad_rows(rows: list[tuple[list[int], int]], length: int, pad_id: int) -> Batch:
    """One batch of (ids, number of prompt tokens) rows."""
    ids = torch.full((len(rows), length), pad_id)
    weights = torch.zeros(len(rows), length)
    for at, (row, num_prompt) in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        weights[at, 1:num_prompt] = PROMPT_WEIGHT
        weights[at, num_prompt : len(row)] = 1.0
    return Batch(ids, weights)
