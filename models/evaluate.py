"""Quality of a generator and of a process reward model on held-out word problems.

Both are given as plain coroutines, so the same code measures the training networks and whatever
serves them. Answers are drawn from the released distribution; seeds and sizes are arguments.

Definitions:
    greedy: share of problems whose temperature-0 answer is right.
    pass32: share of problems with at least one right answer among 32 at temperature 1.
    prm_auroc: area under the ROC curve of step rewards on temperature-1 answers. A step is
        positive when the answer up to and including it is still right by the exact step verifier
        (``sums.num_right_steps``); every step of every answer is one case.
    prm_auroc_mc: the same with another label: the mean outcome of ``num_completions`` fresh
        completions from the step is at least one half.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sklearn.metrics import roc_auc_score

from models.tasks import TASKS, sums
from models.tasks.base import CLOSING, Split, closing_value, messages_of

Messages: TypeAlias = list[dict[str, str]]
Generate: TypeAlias = Callable[[Messages, str, int, float], Awaitable[list[str]]]
"""``generate(messages, prefix, n, temperature)``: n completions of the answer that starts with
``prefix`` (empty, or whole lines each ending in a newline), without the prefix."""
Judge: TypeAlias = Callable[[Messages, list[str]], Awaitable[list[float]]]
"""``judge(messages, steps)``: the reward 0…1 of each step; all steps but the last end with their
newline."""


@dataclass(frozen=True)
class Measured:
    """A figure with its number of cases and 95 % interval."""

    value: float
    n: int
    low: float
    high: float


def held_out(n: int, seed: int, split: Split = "test") -> list[sums.Problem]:
    """The first n word problems of a split and seed."""
    drawn = [TASKS[sums.NAME].problem(split, seed, index) for index in range(n)]
    return [problem for problem in drawn if isinstance(problem, sums.Problem)]


async def greedy_accuracy(
    generate: Generate, *, n: int = 400, seed: int = 7, split: Split = "test"
) -> Measured:
    """``saplings.greedy``."""
    problems = held_out(n, seed, split)
    answers = await asyncio.gather(*(generate(messages_of(p), "", 1, 0.0) for p in problems))
    right = [sums.is_right(p, answer[0]) for p, answer in zip(problems, answers, strict=True)]
    return share(sum(right), n)


async def pass_at(
    generate: Generate, *, k: int = 32, n: int = 400, seed: int = 7, split: Split = "test"
) -> Measured:
    """``saplings.pass32``, with k = 32."""
    problems = held_out(n, seed, split)
    answers = await asyncio.gather(*(generate(messages_of(p), "", k, 1.0) for p in problems))
    solved = [
        any(sums.is_right(problem, text) for text in texts)
        for problem, texts in zip(problems, answers, strict=True)
    ]
    return share(sum(solved), n)


async def step_auroc(
    generate: Generate,
    judge: Judge,
    *,
    n: int = 400,
    num_rollouts: int = 2,
    seed: int = 7,
    split: Split = "test",
) -> Measured:
    """``saplings.prm_auroc``: the label is the exact step verifier's."""
    labels, rewards = [], []
    for problem, steps, step_rewards in await _judged(
        generate, judge, n, num_rollouts, seed, split
    ):
        num_right = sums.num_right_steps(problem, "".join(steps))
        labels += [at < num_right for at in range(len(steps))]
        rewards += step_rewards
    return auroc(labels, rewards)


async def step_auroc_mc(
    generate: Generate,
    judge: Judge,
    *,
    n: int = 100,
    num_rollouts: int = 2,
    num_completions: int = 8,
    seed: int = 7,
    split: Split = "test",
) -> Measured:
    """``prm_auroc_mc``: the label is whether half of the completions from the step end right."""
    judged = await _judged(generate, judge, n, num_rollouts, seed, split)

    async def value(problem: sums.Problem, prefix: str) -> float:
        if CLOSING in prefix:
            return float(sums.is_right(problem, prefix))
        texts = await generate(messages_of(problem), prefix, num_completions, 1.0)
        return sum(sums.is_right(problem, prefix + text) for text in texts) / len(texts)

    prefixes = {
        (problem, "".join(steps[: at + 1]))
        for problem, steps, _ in judged
        for at in range(len(steps))
    }
    ordered = sorted(prefixes, key=lambda pair: (pair[0].text, pair[1]))
    values = await asyncio.gather(*(value(*pair) for pair in ordered))
    value_of = dict(zip(ordered, values, strict=True))
    labels, rewards = [], []
    for problem, steps, step_rewards in judged:
        labels += [value_of[problem, "".join(steps[: at + 1])] >= 0.5 for at in range(len(steps))]
        rewards += step_rewards
    return auroc(labels, rewards)


async def selection_accuracy(
    generate: Generate,
    judge: Judge,
    *,
    width: int = 16,
    n: int = 400,
    seed: int = 7,
    split: Split = "test",
) -> dict[str, Measured]:
    """How well the right one of ``width`` temperature-1 answers is picked.

    ``single`` is the mean over the answers; ``majority`` counts closing values; ``weighted``
    counts them by the reward of the last step; ``best`` takes the highest last reward.
    """
    problems = held_out(n, seed, split)
    judged = await _judged(generate, judge, n, width, seed, split)
    answers: dict[str, list[tuple[bool, str | None, float]]] = {p.text: [] for p in problems}
    for problem, steps, rewards in judged:
        text = "".join(steps)
        reward = rewards[-1]
        answers[problem.text].append((sums.is_right(problem, text), closing_value(text), reward))
    num_right = {"single": 0.0, "majority": 0.0, "weighted": 0.0, "best": 0.0}
    for of_one in answers.values():
        votes: dict[str, float] = {}
        weights: dict[str, float] = {}
        right_values = {value for right, value, _ in of_one if right}
        for _, value, reward in of_one:
            if value is not None:
                votes[value] = votes.get(value, 0) + 1
                weights[value] = weights.get(value, 0) + reward
        num_right["single"] += sum(right for right, _, _ in of_one) / width
        num_right["majority"] += bool(votes) and max(votes, key=votes.__getitem__) in right_values
        num_right["weighted"] += (
            bool(weights) and max(weights, key=weights.__getitem__) in right_values
        )
        num_right["best"] += bool(of_one) and max(of_one, key=lambda one: one[2])[0]
    return {name: share(count, n) for name, count in num_right.items()}


def steps_of(text: str) -> list[str]:
    """The lines of an answer, each with its newline; the last one has none."""
    return [line for line in text.splitlines(keepends=True) if line]


def share(count: float, n: int) -> Measured:
    """A share with its Wilson interval."""
    z = 1.96
    p = count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Measured(p, n, max(0.0, middle - half), min(1.0, middle + half))


def auroc(labels: Sequence[bool], rewards: Sequence[float]) -> Measured:
    """Area under the ROC curve; the interval is Hanley and McNeil's (Radiology 1982)."""
    num_true, num_false = sum(labels), len(labels) - sum(labels)
    if not num_true or not num_false:
        raise ValueError(f"AUROC needs both labels; got {num_true} true and {num_false} false")
    area = float(roc_auc_score(labels, rewards))
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    spread = area * (1 - area) + (num_true - 1) * (q1 - area**2) + (num_false - 1) * (q2 - area**2)
    half = 1.96 * math.sqrt(spread / (num_true * num_false))
    return Measured(area, len(labels), area - half, min(1.0, area + half))


async def _judged(
    generate: Generate, judge: Judge, n: int, num_rollouts: int, seed: int, split: Split
) -> list[tuple[sums.Problem, list[str], list[float]]]:
    """Temperature-1 answers of n problems with the reward of each step."""
    problems = held_out(n, seed, split)
    drawn = await asyncio.gather(
        *(generate(messages_of(problem), "", num_rollouts, 1.0) for problem in problems)
    )
    pairs = [
        (problem, steps_of(text))
        for problem, texts in zip(problems, drawn, strict=True)
        for text in texts
        if text
    ]
    rewards = await asyncio.gather(*(judge(messages_of(p), steps) for p, steps in pairs))
    return [(p, steps, given) for (p, steps), given in zip(pairs, rewards, strict=True)]
