"""Command line of the tasks: print problems as JSON lines, or check answers to them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from models.tasks import SPLITS, TASKS, ProblemId, Task, TaskError, task_named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)
    task = task_named(options.task)
    try:
        if options.check is not None:
            print(checked(task, options.check))
        else:
            _print_problems(task, options.split, options.seed, options.n)
    except TaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader went away, which is its right; keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def checked(task: Task, path: Path) -> float:
    """The share of right answers among the lines ``{id, content}`` of a file.

    Raises:
        TaskError: the file cannot be read or is empty, or a line is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if str(path) != "-" else [*sys.stdin]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read {path}: {error}") from error
    verdicts = [_verdict(task, line, number) for number, line in _numbered(lines)]
    if not verdicts:
        raise TaskError(f"{path} holds no answers")
    return sum(verdicts) / len(verdicts)


def _numbered(lines: list[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _verdict(task: Task, line: str, number: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"line {number} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise TaskError(f"line {number} has no string 'id'")
    content = record.get("content")
    if content is not None and not isinstance(content, str):
        raise TaskError(f"line {number}: 'content' is neither a string nor null")
    if "content" not in record:
        raise TaskError(f"line {number} has no 'content'")
    try:
        which = ProblemId.parse(record["id"])
    except TaskError as error:
        raise TaskError(f"line {number}: {error}") from error
    if which.task != task.name:
        raise TaskError(f"line {number}: {record['id']!r} is not a {task.name} problem")
    problem = task.problem(which.split, which.seed, which.index)
    return task.is_right(problem, content or "")


def _print_problems(task: Task, split: str, seed: int, n: int) -> None:
    for index in range(n):
        which = ProblemId.parse(f"{task.name}-{split}-{seed}-{index}")
        problem = task.problem(which.split, which.seed, which.index)
        record = {
            "id": str(which),
            "messages": task.messages(problem),
            "answer": problem.answer,
        }
        print(json.dumps(record, ensure_ascii=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.tasks", description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0, help="any whole number (default 0)")
    parser.add_argument("--n", type=_count, default=10, help="how many problems (default 10)")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="JSON lines {id, content}, or - for standard input: print the accuracy, 0 to 1",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


if __name__ == "__main__":
    sys.exit(main())
