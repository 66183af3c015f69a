"""What every bundled task has in common: the split rule, identifiers, the closing line.

A problem belongs to the split that the hash of its canonical text names, so two seeds can never
disagree about it and no seed can yield a test problem that training has seen.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal, Protocol, TypeVar, cast, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
CLOSING = "The answer is"

_CLOSING_PATTERN = re.compile(r"The answer is[ \t]*([^\n]*)")
_ID_PATTERN = re.compile(r"([a-z]+)-(train|validation|test)-(-?[0-9]+)-([0-9]+)")


class TaskError(ValueError):
    """Input to a task that cannot be used; the message says what and where."""


@dataclass(frozen=True)
class ProblemId:
    """All that is needed to draw a problem again."""

    task: str
    split: Split
    seed: int
    index: int

    def __str__(self) -> str:
        """The written form, for example ``sums-test-7-12``."""
        return f"{self.task}-{self.split}-{self.seed}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> ProblemId:
        """Read the written form back.

        Raises:
            TaskError: the text is not an identifier.
        """
        found = _ID_PATTERN.fullmatch(text)
        if found is None:
            raise TaskError(
                f"unknown problem id {text[:80]!r}; expected TASK-SPLIT-SEED-INDEX, "
                "for example 'sums-test-7-0'"
            )
        task, split, seed, index = found.groups()
        return cls(task, cast(Split, split), int(seed), int(index))


class AnyProblem(Protocol):
    """A drawn problem: its canonical text, its reference steps and its answer."""

    @property
    def text(self) -> str:
        """The canonical text; the split is computed from it."""

    @property
    def steps(self) -> tuple[str, ...]:
        """One line of reference reasoning each, without the closing line."""

    @property
    def answer(self) -> int | str:
        """What stands after the closing phrase in the reference solution."""


P = TypeVar("P", bound=AnyProblem)


def split_of(text: str) -> Split:
    """The split a canonical problem text belongs to: blake2b mod 10, 0-7 train, 8, 9."""
    digest = hashlib.blake2b(text.encode()).digest()
    bucket = int.from_bytes(digest, "big") % 10
    if bucket < 8:
        return "train"
    return "validation" if bucket == 8 else "test"


def draw_in_split(
    task: str, draw: Callable[[random.Random], P], split: Split, seed: int, index: int
) -> P:
    """The problem number ``index`` of a seed and split, the same on every machine.

    Each index has its own random streams, so one problem is drawn again without its
    predecessors; about ten draws are needed for a test problem.
    """
    for attempt in count():
        problem = draw(random.Random(f"{task}:{seed}:{index}:{attempt}"))
        if split_of(problem.text) == split:
            return problem
    raise AssertionError  # count() never ends


def messages_of(problem: AnyProblem) -> list[dict[str, str]]:
    """The chat messages that ask for the problem: one user turn, nothing else."""
    return [{"role": "user", "content": problem.text}]


def solution_of(problem: AnyProblem) -> str:
    """The reference solution: a step per line, then the closing line."""
    return "\n".join([*problem.steps, f"{CLOSING} {problem.answer}."])


def closing_value(content: str) -> str | None:
    """What follows the last closing phrase, without the full stop; None without a phrase."""
    found = _CLOSING_PATTERN.findall(content)
    if not found:
        return None
    return cast(str, found[-1]).strip().removesuffix(".").strip()
