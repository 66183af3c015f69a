"""The process reward model's data: the generator's own rollouts, with Monte-Carlo values.

Many completions are sampled for each problem. The completions that share their first k lines are
completions *from that prefix*, so the share of them that end right estimates the value of the
prefix without sampling anything more: right prefixes are shared by many, and wrong ones, which
few share, nearly always end wrong. No verifier of single steps is used.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm  # type: ignore[import-untyped]

from models.tasks import sums
from models.tasks.base import draw_in_split
from models.training.batches import Chat
from models.training.network import Llama
from models.training.rollouts import sample
from reward_models.training.process import ProcessRow


@dataclass(frozen=True)
class RolloutRun:
    """Settings of the rollouts; the defaults made the committed weights."""

    seed: int = 25
    num_problems: int = 1500
    num_samples: int = 16
    max_tokens: int = 140
    broad_share: float = 0.1
    l2: float = 0.1
    """Of the head's weight: chosen among 3 … 0.001 on the validation split. Less of it estimates
    the chance to end right better, more of it tells slips apart better."""


def process_rows(network: Llama, chat: Chat, run: RolloutRun) -> list[ProcessRow]:
    """Sample train-split problems and turn every distinct completion into a training row."""
    problems = _problems(run)
    # Solutions of like length finish together, which is what the sampler's batches need.
    problems.sort(key=lambda problem: len(problem.steps))
    rows: list[ProcessRow] = []
    chunk = 512
    desc = f"rollouts, seed {run.seed}"
    with tqdm(total=len(problems), mininterval=10, desc=desc) as progress:
        for start in range(0, len(problems), chunk):
            some = problems[start : start + chunk]
            prompts = [chat.prompt(problem.text) for problem in some]
            drawn = sample(
                network,
                prompts,
                chat.end_id,
                num_samples=run.num_samples,
                max_tokens=run.max_tokens,
                seed=run.seed * 1000 + start,
                on_batch=progress.update,
            )
            for problem, prompt, completions in zip(some, prompts, drawn, strict=True):
                rows.extend(rows_of(problem, prompt, completions, chat))
    return rows


def rows_of(
    problem: sums.Problem, prompt: Sequence[int], completions: Sequence[list[int]], chat: Chat
) -> list[ProcessRow]:
    """A row for each distinct completion of a problem, weighed by its copies."""
    split = [split_steps(completion, chat) for completion in completions]
    counts: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])
    for completion, ends in zip(completions, split, strict=True):
        is_right = sums.is_right(problem, chat.decode(completion))
        for end in ends:
            seen = counts[tuple(completion[: end + 1])]
            seen[0] += is_right
            seen[1] += 1
    # A right solution is one and the same text: weighed once, right answers would look rare.
    copies = Counter(
        tuple(done[: ends[-1] + 1]) for done, ends in zip(completions, split, strict=True) if ends
    )
    rows = []
    for body, num_copies in copies.items():
        ends = split_steps(body, chat)
        targets = []
        for end in ends:
            num_right, num_all = counts[body[: end + 1]]
            value = num_right / num_all
            targets.append((len(prompt) + end, value, float(num_copies)))
        rows.append(ProcessRow((*prompt, *body), len(prompt), tuple(targets)))
    return rows


def split_steps(completion: Sequence[int], chat: Chat) -> list[int]:
    """Positions of the last tokens of the steps; the end token belongs to none.

    A step ends at its newline; the last one at the last token before the end of the turn.
    """
    body = list(completion)
    if body and body[-1] == chat.end_id:
        body.pop()
    ends = [at for at, token in enumerate(body) if token == chat.newline_id]
    if body and body[-1] != chat.newline_id:
        ends.append(len(body) - 1)
    return ends


def _problems(run: RolloutRun) -> list[sums.Problem]:
    rng = random.Random(f"rollouts:{run.seed}")
    problems = []
    for index in range(run.num_problems):
        level = sums.BROAD if rng.random() < run.broad_share else sums.RELEASED
        problems.append(
            draw_in_split(
                "sums-rollouts", partial(sums.draw, level=level), "train", run.seed, index
            )
        )
    return problems
