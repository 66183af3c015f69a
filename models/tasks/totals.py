"""Short sums: three or four numbers to add and subtract, one line a step, then the answer.

A whole reference solution has at most 31 tokens of the saplings' tokenizer, so that a model which
writes all of its answer at once can do it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from models.tasks.base import closing_value

NAME = "totals"

_ASKED = ("What is {}?", "Work out {}.", "How much is {}?")


@dataclass(frozen=True)
class Problem:
    """A chain of sums with its reference steps."""

    text: str
    steps: tuple[str, ...]
    answer: int


def draw(rng: random.Random) -> Problem:
    """One problem: two sums, over numbers of one and two digits, that never fall below zero."""
    value = rng.randint(2, 99)
    terms, steps = [str(value)], []
    for _ in range(2):
        amount = rng.randint(2, 99)
        sign = "-" if amount < value and rng.random() < 0.5 else "+"
        after = value + amount if sign == "+" else value - amount
        steps.append(f"{value}{sign}{amount}={after}")
        terms += [sign, str(amount)]
        value = after
    return Problem(rng.choice(_ASKED).format("".join(terms)), tuple(steps), value)


def is_right(problem: Problem, content: str) -> bool:
    """Whether the content closes with the right number."""
    value = closing_value(content)
    return (
        value is not None
        and re.fullmatch(r"[0-9]+", value) is not None
        and (int(value) == problem.answer)
    )
