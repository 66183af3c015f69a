"""Short sums: three or four numbers to add and subtract, one line a step, then the answer.

A whole reference solution has at most 31 tokens of the saplings' tokenizer, so that a model which
writes all of its answer at once can do it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from models.tasks.base import closing_value

NAME = "totals"

_ASKED: Final = ("What is {}?", "Work out {}.", "How much is {}?")
_QUESTION: Final = re.compile(
    r"(?:What is|Work out|How much is) (\d{1,6})([+-])(\d{1,6})([+-])(\d{1,6})[?.]"
)
_LINE: Final = re.compile(r"(\d{1,6})([+-])(\d{1,6})=(\d{1,6})")


@dataclass(frozen=True)
class Problem:
    """A chain of sums with its reference steps."""

    text: str
    steps: tuple[str, ...]
    answer: int


def draw(rng: random.Random, max_amount: int = 9) -> Problem:
    """One problem: two sums that start at up to 99 and never fall below zero.

    Args:
        rng: Every random choice comes from it.
        max_amount: The most that is added or taken away.
    """
    value = rng.randint(2, 99)
    terms, steps = [str(value)], []
    for _ in range(2):
        amount = rng.randint(2, max_amount)
        sign = "-" if amount < value and rng.random() < 0.5 else "+"
        after = value + amount if sign == "+" else value - amount
        steps.append(f"{value}{sign}{amount}={after}")
        terms += [sign, str(amount)]
        value = after
    return Problem(rng.choice(_ASKED).format("".join(terms)), tuple(steps), value)


def read(text: str) -> Problem | None:
    """The problem that a question asks; None for another question."""
    found = _QUESTION.fullmatch(text.strip())
    if found is None:
        return None
    value, steps = int(found[1]), []
    for sign, amount in ((found[2], int(found[3])), (found[4], int(found[5]))):
        after = value + amount if sign == "+" else value - amount
        steps.append(f"{value}{sign}{amount}={after}")
        value = after
    return Problem(text.strip(), tuple(steps), value)


def worth(problem: Problem, content: str) -> float:
    """How near the content comes to a right solution, in 0..1; 1 for a right one, and only for it.

    A line counts by its place: that it asks the right sum, and how many digits of its result are
    right for what it asks.
    """
    if is_right(problem, content):
        return 1.0
    lines = content.split("\n")
    share = 0.0
    for at, step in enumerate(problem.steps):
        found = _LINE.fullmatch(lines[at].strip()) if at < len(lines) else None
        if found is None:
            continue
        left, sign, right, result = found.groups()
        expected = int(left) + int(right) if sign == "+" else int(left) - int(right)
        share += 0.05 + 0.15 * (f"{left}{sign}{right}" == step.split("=")[0])
        share += 0.15 * closeness(result, expected)
    return share + 0.2 * closeness(closing_value(content) or "", problem.answer)


def closeness(written: str, expected: int) -> float:
    """The share of right digits, from the right; numbers of another length lose the difference."""
    wanted = str(expected)
    if not written.isdigit():
        return 0.0
    equal = sum(a == b for a, b in zip(reversed(written), reversed(wanted), strict=False))
    return equal / max(len(written), len(wanted))


def is_right(problem: Problem, content: str) -> bool:
    """Whether the content closes with the right number."""
    value = closing_value(content)
    return (
        value is not None
        and re.fullmatch(r"[0-9]+", value) is not None
        and (int(value) == problem.answer)
    )
