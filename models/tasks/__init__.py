"""Generator tasks with exact verifiers, by name.

A task is drawn, asked and verified here and nowhere else; ``python -m models.tasks`` is the
command line over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.tasks import countdown, guarded, sums, tales, totals
from models.tasks.base import (
    SPLITS,
    AnyProblem,
    ProblemId,
    Split,
    TaskError,
    draw_in_split,
    messages_of,
)

__all__ = ["SPLITS", "TASKS", "AnyProblem", "ProblemId", "Split", "Task", "TaskError", "task_named"]


@dataclass(frozen=True)
class Task:
    """A task by name: draws its problems and verifies what is said to them."""

    name: str
    draw_one: Callable[[ProblemId], AnyProblem]
    verify: Callable[[Any, str], bool]
    ask: Callable[[Any], list[dict[str, str]]] = messages_of

    def problem(self, split: Split, seed: int, index: int) -> AnyProblem:
        """The problem number ``index`` of a split and seed."""
        return self.draw_one(ProblemId(self.name, split, seed, index))

    def messages(self, problem: AnyProblem) -> list[dict[str, str]]:
        """The chat messages that ask for it."""
        return self.ask(problem)

    def is_right(self, problem: AnyProblem, content: str) -> bool:
        """Whether the content answers the problem rightly."""
        return self.verify(problem, content)


def _drawn(draw: Callable[..., AnyProblem], which: ProblemId) -> AnyProblem:
    return draw_in_split(which.task, draw, which.split, which.seed, which.index)


TASKS = {
    sums.NAME: Task(sums.NAME, partial(_drawn, sums.draw), sums.is_right),
    guarded.NAME: Task(
        guarded.NAME, partial(_drawn, guarded.draw), guarded.is_right, guarded.messages_of
    ),
    countdown.NAME: Task(countdown.NAME, partial(_drawn, countdown.draw), countdown.is_right),
    totals.NAME: Task(totals.NAME, partial(_drawn, totals.draw), totals.is_right),
    tales.NAME: Task(tales.NAME, partial(_drawn, tales.draw), tales.is_right),
}


def task_named(name: str) -> Task:
    """Look a task up.

    Raises:
        TaskError: there is no such task.
    """
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}; there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
