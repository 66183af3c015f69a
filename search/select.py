"""Choosing among judged branches: budget shares, aggregated step values, votes. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Final

from reward_models.base import Aggregate as Aggregate
from search.answers import canonical, equivalent

INVALID: Final = "[invalid]"
"""Stands for the answer of a text that states none."""

_AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda values: sum(values) / len(values),
    "model": lambda values: values[-1],  # the judge was shown a single step
}


def aggregated(values: Sequence[float], how: Aggregate) -> float:
    """One value for an answer from those of its steps, rounded to 1e-5; NaN without any."""
    return round(_AGGREGATES[how](values), 5) if values else math.nan


def rebase_counts(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """How many continuations each branch gets: softmax shares that sum to `budget`.

    Source: REBASE, arXiv 2408.00724 §3.1.3, in the form of the authors' code: descending reward,
    ceiling of the share of what remains.
    Differs: float64 with the maximum subtracted (no overflow at small temperatures), 1e-9 taken
    off before the ceiling and clamped (the float32 original spends more than the budget), ties in
    the order given.

    Args:
        rewards: Finite.
        budget: Continuations to hand out, at least 0.
        temperature: Above 0; smaller is greedier.

    Returns:
        Counts in the order of `rewards`, non-negative, summing to `budget` (if there are any).
    """
    counts = [0] * len(rewards)
    order = sorted(range(len(rewards)), key=lambda at: -rewards[at])
    weights = [math.exp((rewards[at] - rewards[order[0]]) / temperature) for at in order]
    # Remaining mass from the smallest up: running subtraction would lose it to rounding.
    masses = list(accumulate(reversed(weights)))[::-1]
    left = budget
    for at, weight, mass in zip(order, weights, masses, strict=True):
        if left <= 0 or mass <= 0:
            break
        counts[at] = max(0, min(left, math.ceil(left * weight / mass - 1e-9)))
        left -= counts[at]
    return counts


@dataclass(frozen=True)
class Group:
    """Candidates with equivalent answers.

    Attributes:
        answer: The first one's answer, or `INVALID`.
        members: Positions in the order given.
        weight: The sum of their weights.
    """

    answer: str
    members: tuple[int, ...]
    weight: float


def vote(answers: Sequence[str | None], weights: Sequence[float]) -> list[Group]:
    """Groups of equivalent answers, heaviest first; ties to the first to reach that total.

    Texts that state no answer are the last group, whatever they weigh: together they say nothing.
    """
    members: list[list[int]] = []
    names: list[str] = []
    by_key: dict[Fraction | str, int] = {}
    totals: list[float] = []
    reached: list[int] = []
    for at, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        name = INVALID if answer is None else answer
        group = _group_of(name, names, by_key)
        if group == len(names):
            names.append(name)
            members.append([])
            totals.append(0.0)
            reached.append(at)
        members[group].append(at)
        totals[group] += weight
        if weight:
            reached[group] = at
    # Sums of rounded values: without rounding again, ties would depend on the order of summation.
    totals = [round(total, 9) for total in totals]
    order = sorted(
        range(len(names)), key=lambda at: (names[at] == INVALID, -totals[at], reached[at])
    )
    return [Group(names[one], tuple(members[one]), totals[one]) for one in order]


def _group_of(name: str, names: Sequence[str], by_key: dict[Fraction | str, int]) -> int:
    key = INVALID if name == INVALID else canonical(name)
    if key not in by_key:
        same = (
            at for at, other in enumerate(names) if other != INVALID and equivalent(name, other)
        )
        by_key[key] = next(same, len(names)) if name != INVALID else len(names)
    return by_key[key]


def order_by_vote(groups: Sequence[Group], weights: Sequence[float]) -> list[int]:
    """Every position, heaviest group first, inside a group by weight, then in the order given."""
    return [at for one in groups for at in sorted(one.members, key=lambda at: -weights[at])]


def spread(total: int, ways: int) -> list[int]:
    """`total` in `ways` nearly equal whole parts, the larger ones first."""
    return [total // ways + (at < total % ways) for at in range(ways)]
