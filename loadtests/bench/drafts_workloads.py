"""What the drafters' bench asks: prompts whose answers are the sapling's own, nothing replayed.

* ``task``: word problems, each its own, to the end of the answer. Little repeats but the numbers.
* ``editing``: a worked solution stands three times in the text and the model goes on with it,
  which it does in copies with changes ("… is 990. answer is 990. is 990. …"). No end of sequence.
* ``prose``: the first two sentences of a story, told on without end; at temperature 1 nearly
  anything comes.

A sapling of 1.9 million parameters copies no long spans when asked to in a conversation (it knows
one turn of its own task), so the repetitive workload is a text that it continues.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engines.base import Engine, Sampling, TokenIds
from models.tasks import sums
from models.tasks.base import Split, draw_in_split, messages_of, solution_of

EDITED: Final = sums.Level(
    (2, 3), digits=(2, 3), pack_digits=(2, 2), max_value=9_999, distractors=(0, 0)
)
"""Short stories: their solution fits three times into what the sapling was trained to read."""
_COPIES: Final = 3
_SENTENCES: Final = 2


@dataclass(frozen=True)
class Workload:
    """Prompts and how long the answers may be.

    Attributes:
        name: As in the figures.
        level: Of the problems that the prompts are made from.
        write: A problem's prompt.
        max_tokens: Of an answer.
        is_endless: Whether the answer always has `max_tokens`.
    """

    name: str
    level: sums.Level
    write: Callable[[Engine, sums.Problem], TokenIds]
    max_tokens: int
    is_endless: bool

    def prompt(self, engine: Engine, split: Split, seed: int, index: int) -> TokenIds:
        """Prompt number `index`, the same on every machine."""

        def draw(rng: random.Random) -> sums.Problem:
            return sums.draw(rng, self.level)

        return self.write(engine, draw_in_split(sums.NAME, draw, split, seed, index))

    def sampling(self, temperature: float, drafter: str | None = None) -> Sampling:
        """How its answers are drawn."""
        least = self.max_tokens if self.is_endless else 0
        return Sampling(
            temperature=temperature,
            max_tokens=self.max_tokens,
            min_tokens=least,
            drafter=drafter,
            deltas=False,
        )


def _question(engine: Engine, problem: sums.Problem) -> TokenIds:
    prompt = engine.render(messages_of(problem))
    assert isinstance(prompt, tuple)
    return prompt


def _solved_thrice(engine: Engine, problem: sums.Problem) -> TokenIds:
    return engine.encode(f"{solution_of(problem)}\n" * _COPIES)


def _opening(engine: Engine, problem: sums.Problem) -> TokenIds:
    return engine.encode(". ".join(problem.text.split(". ")[:_SENTENCES]) + ".")


WORKLOADS: Final = (
    Workload("task", sums.RELEASED, _question, 256, is_endless=False),
    Workload("editing", EDITED, _solved_thrice, 96, is_endless=True),
    Workload("prose", sums.RELEASED, _opening, 96, is_endless=True),
)
"""All of them, in the order of the figures."""
