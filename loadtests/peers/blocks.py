"""Blocks of word problems that contenders take turns on, and what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median, stdev

from models.tasks import TASKS, sums
from models.tasks.base import Split, messages_of


@dataclass(frozen=True)
class Block:
    """Problems to solve in one go, and how.

    Attributes:
        prompts: What the user says.
        width: Samples or particles of each.
        in_flight: Problems at a time.
        temperature: Of sampling.
        max_steps: Steps of a particle.
        seed: Of everything random that the contender lets one seed.
    """

    prompts: tuple[str, ...]
    width: int
    in_flight: int
    temperature: float
    max_steps: int
    seed: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Block:
        """Read `to_json` back."""
        given = json.loads(line)
        return cls(**{**given, "prompts": tuple(given["prompts"])})


@dataclass
class Row:
    """What a contender did: seconds of each block, and whether each answer was right."""

    seconds: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Versus:
    """One contender against another on the same blocks.

    Attributes:
        speedup: Median over blocks of the other's seconds over ours.
        slowest: The smallest of these ratios.
        fastest: The largest.
        gain: Our accuracy minus theirs, over the same problems.
        error: Its standard error, paired.
    """

    speedup: float
    slowest: float
    fastest: float
    gain: float
    error: float


def versus(ours: Row, theirs: Row) -> Versus:
    """Compare two rows of the same blocks."""
    ratios = [there / here for here, there in zip(ours.seconds, theirs.seconds, strict=True)]
    gains = [here - there for here, there in zip(ours.right, theirs.right, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return Versus(median(ratios), min(ratios), max(ratios), mean(gains), error)


def word_problems(count: int, seed: int, split: Split = "test") -> list[sums.Problem]:
    """The first held-out problems of a seed."""
    drawn = [TASKS[sums.NAME].problem(split, seed, index) for index in range(count)]
    return [problem for problem in drawn if isinstance(problem, sums.Problem)]


def prompt_of(problem: sums.Problem) -> str:
    """The one user message that puts the problem."""
    (message,) = messages_of(problem)
    return message["content"]


def are_right(problems: Sequence[sums.Problem], contents: Sequence[str]) -> list[bool]:
    """Whether each answer is exactly right."""
    pairs = zip(problems, contents, strict=True)
    return [sums.is_right(problem, content) for problem, content in pairs]
