"""`auto` against the best fixed strategy, on a mixture of easy and hard problems.

Fixed strategies have a width of 16; which one is best, and how `auto` decides, is chosen on the
validation split: of the settings of `auto` that take at most 58 % of its tokens there, the one that
gets most right.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from loadtests.bench import paired
from loadtests.bench.figures import Bench
from loadtests.bench.questions import Question, question_of
from loadtests.bench.saplings import Saplings, open_saplings
from loadtests.bench.trials import Contender, Lab, Rows
from models.tasks import sums
from models.tasks.base import Split, draw_in_split

EASY: Final = sums.Level(
    (2, 4), digits=(1, 2), pack_digits=(1, 2), max_value=9_999, distractors=(0, 1)
)
WIDTH: Final = 16
_FIXED: Final = ("self_consistency", "best_of_n", "beam", "ets", "rebase", "particle_filter")
_SETTINGS: Final[tuple[Contender, ...]] = tuple(
    Contender("auto", width, {"look": look, "threshold": sure, "hard_below": sure, "tree": "beam"})
    for width, look, sure in (
        (8, 2, 0.95),
        (8, 2, 0.98),
        (8, 3, 0.98),
        (10, 2, 0.95),
        (10, 2, 0.98),
        (10, 3, 0.98),
        (12, 2, 0.95),
        (12, 3, 0.98),
    )
)
_SHARE: Final = 0.58
_PROBLEMS: Final = 3000
_VALIDATION: Final = 400
_POOL: Final = 131_072


async def measure(bench: Bench) -> None:
    """Choose on validation problems, then compare."""
    names = [f"headline.auto.{name}" for name in ("token_share", "accuracy_delta")]
    if not any([bench.wants(name) for name in names]):
        return
    async with open_saplings(kv_tokens=_POOL) as saplings:
        chosen = await _chosen(bench, _lab(bench, saplings, "validation"))
        if chosen is None:
            return
        lab = _lab(bench, saplings, "test")
        count = bench.at_most(_PROBLEMS)
        rows: list[Rows] = []
        for contender in chosen:
            got = await lab.run(contender, range(count))
            if got is None:
                return
            _say(bench, "test", contender, got)
            rows.append(got)
    fixed, auto = rows
    share = paired.quotient(auto.tokens, fixed.tokens, bench.seed)
    bench.put_measured(names[0], share, unit="share", better="lower")
    delta = paired.difference(auto.right, fixed.right, bench.seed)
    bench.put_measured(names[1], delta, unit="share", better="higher")


async def _chosen(bench: Bench, lab: Lab) -> tuple[Contender, Contender] | None:
    """The fixed strategy to beat, and `auto` as it will run."""
    fixed = await _ran(bench, lab, [Contender(name, WIDTH) for name in _FIXED])
    autos = await _ran(bench, lab, _SETTINGS)
    if fixed is None or autos is None:
        return None
    best, rows = max(fixed, key=lambda one: float(one[1].right.mean()))
    bound = _SHARE * float(rows.tokens.mean())
    cheap = [one for one in autos if float(one[1].tokens.mean()) <= bound]
    if not cheap:
        cheap = [min(autos, key=lambda one: float(one[1].tokens.mean()))]
    return best, max(cheap, key=lambda one: float(one[1].right.mean()))[0]


async def _ran(
    bench: Bench, lab: Lab, contenders: Sequence[Contender]
) -> list[tuple[Contender, Rows]] | None:
    found = []
    for contender in contenders:
        rows = await lab.run(contender, range(bench.at_most(_VALIDATION)))
        if rows is None:
            return None
        _say(bench, "validation", contender, rows)
        found.append((contender, rows))
    return found


def _lab(bench: Bench, saplings: Saplings, split: Split) -> Lab:
    source = partial(mixture, seed=bench.seed, split=split)
    return Lab(bench, saplings, split, name="auto", source=source)


def mixture(count: int, *, seed: int, split: Split) -> list[Question]:
    """Easy and hard problems in turns."""
    problems = [_problem(index, seed, split) for index in range(count)]
    return [question_of(problem, sums.is_right) for problem in problems]


def _problem(index: int, seed: int, split: Split) -> sums.Problem:
    def draw(rng: random.Random) -> sums.Problem:
        return sums.draw(rng, sums.RELEASED if index % 2 else EASY)

    return draw_in_split("mixture", draw, split, seed, index)


def _say(bench: Bench, split: str, contender: Contender, rows: Rows) -> None:
    bench.say(
        f"{split}, {contender.strategy}({contender}): {rows.right.mean():.3f} right, "
        f"{rows.tokens.mean():.0f} tokens, {rows.seconds.mean():.3f} s (n={len(rows)})"
    )
