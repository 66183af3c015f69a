"""What a bench asks: questions with a verdict, drawn from a task or read from a file.

A file has one JSON object a line, as GSM8K, MATH and their like are shared: the question under
`question`, `problem` or `prompt` (or a whole conversation under `messages`), the reference under
`answer` or `solution`, where the last boxed expression, what follows ``####`` or "The answer is",
or the last number counts. Answers are compared by value, as votes are. A fifth of the questions,
by the hash of their text, is for validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from engines.base import ChatMessage
from loadtests.bench.figures import BenchError
from models.tasks import AnyProblem, Task, task_named
from models.tasks.base import Split, messages_of
from search.answers import equivalent, extract_answer

Source: TypeAlias = Callable[[int], Sequence["Question"]]
"""The first so many questions; fewer where there are not so many."""

_TEXTS: Final = ("question", "problem", "prompt")
_ANSWERS: Final = ("answer", "solution")
_VALIDATION: Final = 2
"""Buckets of ten."""


@dataclass(frozen=True)
class Question:
    """A conversation to answer.

    Attributes:
        messages: The conversation.
        is_right: Whether a text answers it.
    """

    messages: tuple[ChatMessage, ...]
    is_right: Callable[[str], bool]


def question_of(problem: AnyProblem, verify: Callable[[Any, str], bool]) -> Question:
    """A task's problem as a question."""
    return Question(tuple(messages_of(problem)), lambda content: verify(problem, content))


def of_task(name: str, *, seed: int, split: Split) -> Source:
    """The problems of a task.

    Raises:
        TaskError: There is no such task.
    """
    task: Task = task_named(name)

    def draw(count: int) -> list[Question]:
        drawn = [task.problem(split, seed, index) for index in range(count)]
        return [question_of(problem, task.verify) for problem in drawn]

    return draw


def of_file(path: Path, *, split: Split) -> Source:
    """The questions of a file that are in a split, in its order.

    Raises:
        BenchError: The file cannot be read, a line is no question, or none is in the split.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise BenchError(f"{path} cannot be read: {err}") from err
    every = [_read(f"{path}:{at}", line) for at, line in enumerate(lines, 1) if line.strip()]
    wanted = [question for question, bucket in every if _split(bucket) == split]
    if not wanted:
        raise BenchError(f"{path}: none of its {len(every)} questions is for {split}; add more")
    return lambda count: wanted[:count]


def _read(where: str, line: str) -> tuple[Question, int]:
    """A question, and the bucket of its text, 0…9."""
    try:
        row = json.loads(line)
    except ValueError as err:
        raise BenchError(f"{where} is not JSON: {err}") from err
    if not isinstance(row, dict):
        raise BenchError(f"{where} is not an object")
    messages = row.get("messages") or _one_turn(row)
    stated = next((str(row[name]) for name in _ANSWERS if row.get(name) is not None), None)
    if not messages or stated is None:
        needed = f"{', '.join(_TEXTS)} or messages, and {' or '.join(_ANSWERS)}"
        raise BenchError(f"{where} has the keys {sorted(row)}; it needs {needed}")
    reference = extract_answer(stated) or stated.strip()

    def is_right(content: str) -> bool:
        said = extract_answer(content)
        return said is not None and equivalent(said, reference)

    digest = hashlib.blake2b(json.dumps(messages, sort_keys=True).encode()).digest()
    return Question(tuple(messages), is_right), int.from_bytes(digest, "big") % 10


def _one_turn(row: Mapping[str, Any]) -> list[ChatMessage]:
    text = next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)
    return [{"role": "user", "content": text}] if text else []


def _split(bucket: int) -> Split:
    return "validation" if bucket < _VALIDATION else "test"
