"""Word problems in several steps with one whole number as the answer.

A person owns some things; events change how many. A step is one line ``a+b=c``; an event such as
"buys 7 boxes of 43 coins" takes two. Sentences about other people are distractors, unless that
person later hands everything over. What makes the task hard for a small model is the length of
the chain, carries in numbers of up to four digits, and telling distractors apart.

This module draws problems and verifies answers; the sentences are in ``models.tasks.stories``.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from models.tasks.base import CLOSING, closing_value
from models.tasks.stories import Story

NAME = "sums"

_STEP_PATTERN = re.compile(r"\s*([0-9]+)\s*([-+*/])\s*([0-9]+)\s*=\s*([0-9]+)\s*\.?\s*")


@dataclass(frozen=True)
class Level:
    """How hard a drawn problem is: ranges are inclusive."""

    lines: tuple[int, int]
    """Reference steps, without the closing line."""
    digits: tuple[int, int]
    """Digits of added and subtracted amounts."""
    pack_digits: tuple[int, int]
    """Digits of what a box or bag holds."""
    max_value: int
    distractors: tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A word problem with its reference steps."""

    text: str
    steps: tuple[str, ...]
    answer: int


WIDE = Level((2, 9), digits=(1, 4), pack_digits=(1, 3), max_value=30_000, distractors=(0, 2))
"""What the generator's first stage of training sees, beside the released level."""

BROAD = Level((2, 9), digits=(1, 3), pack_digits=(1, 2), max_value=9_999, distractors=(0, 2))
"""What the second stage sees, beside the released level."""

RELEASED = Level((5, 8), digits=(2, 3), pack_digits=(2, 2), max_value=9_999, distractors=(1, 2))
"""What ``python -m models.tasks sums`` draws: chosen so that search has room to help."""


def draw(rng: random.Random, level: Level = RELEASED) -> Problem:
    """One problem of the level; every random choice comes from ``rng``."""
    while True:
        problem = _attempt(rng, level)
        if problem is not None:
            return problem


def is_right(problem: Problem, content: str) -> bool:
    """Whether the content closes with the right number; thousands commas are accepted."""
    value = closing_value(content)
    if value is None:
        return False
    value = value.replace(",", "")
    return re.fullmatch(r"[0-9]+", value) is not None and int(value) == problem.answer


def num_right_steps(problem: Problem, content: str) -> int:
    """How many leading lines of the content are still on a right way to the answer.

    A line counts when it does the sum that the story asks for next, and does it right; the
    operands of + and * may be swapped. The closing line counts like a step.
    """
    num_right = 0
    expected = [_parsed(step) for step in problem.steps]
    for position, line in enumerate(content.split("\n")):
        if position < len(expected):
            right = _parsed(line) == expected[position]
        else:
            is_last = position == len(expected) and CLOSING in line
            right = is_last and is_right(problem, line)
        if not right:
            break
        num_right += 1
    return num_right


def _parsed(line: str) -> tuple[str, tuple[int, ...], int] | None:
    found = _STEP_PATTERN.fullmatch(line)
    if found is None or max(len(part) for part in found.groups()) > 12:
        return None
    left, sign, right, result = found.groups()
    operands = (int(left), int(right))
    if sign in "+*":
        operands = (min(operands), max(operands))
    return sign, operands, int(result)


def _attempt(rng: random.Random, level: Level) -> Problem | None:
    """Draw events until the chain is long enough; None when it ran into a dead end."""
    num_lines = rng.randint(*level.lines)
    story = Story(rng, num_distractors=rng.randint(*level.distractors))
    # The chain never starts at one digit, so that division has room.
    value = _amount(rng, (2, max(2, level.digits[1])))
    story.start(value)
    steps: list[str] = []
    while len(steps) < num_lines:
        room = num_lines - len(steps)
        moved = _event(rng, level, story, value, room)
        if moved is None:
            return None
        lines, value = moved
        steps.extend(lines)
    return Problem(text=story.finish(), steps=tuple(steps), answer=value)


def _event(
    rng: random.Random, level: Level, story: Story, value: int, room: int
) -> tuple[list[str], int] | None:
    """Tell one event; returns its lines and the new value, None when none fits."""
    kinds = ["gain", "gain", "lose", "lose", "times", "share", "packs", "unpack", "inherit"]
    for kind in rng.sample(kinds, len(kinds)):
        if kind == "gain":
            amount = _amount(rng, level.digits)
            if value + amount <= level.max_value:
                story.gain(amount)
                return _lines(value, "+", amount)
        elif kind == "lose":
            amount = _amount(rng, level.digits)
            if amount < value:
                story.lose(amount)
                return _lines(value, "-", amount)
        elif kind == "times":
            factor = rng.randint(2, 9)
            if value * factor <= level.max_value // 2:
                story.times(factor)
                return _lines(value, "*", factor)
        elif kind == "share":
            parts = [part for part in range(2, 10) if value % part == 0 and value // part >= 10]
            if parts:
                part = rng.choice(parts)
                story.share(part)
                return _lines(value, "/", part)
        elif kind in ("packs", "unpack") and room >= 2:
            packs, each = rng.randint(3, 9), _amount(rng, level.pack_digits)
            total = packs * each
            if kind == "packs" and value + total <= level.max_value:
                story.packs(packs, each)
                first, _ = _lines(packs, "*", each)
                second, after = _lines(value, "+", total)
                return first + second, after
            if kind == "unpack" and total < value:
                story.unpack(packs, each)
                first, _ = _lines(packs, "*", each)
                second, after = _lines(value, "-", total)
                return first + second, after
        elif kind == "inherit":
            amount = _amount(rng, level.digits)
            if value + amount <= level.max_value and story.inherit(amount):
                return _lines(value, "+", amount)
    return None


def _amount(rng: random.Random, digits: tuple[int, int]) -> int:
    size = rng.randint(*digits)
    return rng.randint(2 if size == 1 else 10 ** (size - 1), 10**size - 1)


def _lines(left: int, sign: str, right: int) -> tuple[list[str], int]:
    results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
    return [f"{left}{sign}{right}={results[sign]}"], results[sign]
