"""Small rules about how a search ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from search.base import Ranked
from search.budget import Budget
from search.errors import BudgetExhausted


def visible_first(ranked: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """The same order, but candidates without visible text last."""
    return tuple(sorted(ranked, key=lambda one: not one.branch.text.strip()))


def first_of(group: ExceptionGroup[Exception]) -> Exception:
    """The first error of tasks that ran together: what a caller wants to know."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, ExceptionGroup) else first


def nothing_produced(why: Literal["budget", "deadline"], budget: Budget) -> BudgetExhausted:
    """The error of a run that was cut short before its first visible text."""
    limits, spent = budget.limits, budget.spent
    if why == "deadline":
        return BudgetExhausted("wall_ms", limits.wall_ms, 1)
    for what in ("generated_tokens", "candidates", "reward_calls", "nfe"):
        bound = getattr(limits, what)
        if bound is not None and getattr(spent, what) >= bound:
            return BudgetExhausted(what, bound, 1)
    what, wanted = budget.refused or ("generated_tokens", 1)
    return BudgetExhausted(what, getattr(limits, what), wanted)
