"""Entropic particle filtering against particle filtering, under a sound and a rash judge.

The rash judge is `loadtests.bench.overconfident`. How the entropic filter anneals is chosen on the
validation split: of a few settings, the one that gets most right under the rash judge with eight
particles. Everything else is as both have it by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from loadtests.bench import paired
from loadtests.bench.figures import Bench
from loadtests.bench.overconfident import Overconfident
from loadtests.bench.questions import Question
from loadtests.bench.saplings import Saplings, open_saplings
from loadtests.bench.trials import Contender, Lab, Rows
from models.tasks.base import Split
from search.run import Result
from search.tree import SearchTree

PLAIN: Final = "particle_filter"
ENTROPIC: Final = "entropic_particle_filter"
SIZES: Final = (4, 8, 16)
_PROBLEMS: Final = {"overconfident": 1000, "plain": 4000}
_VALIDATION: Final = 200
_SETTINGS: Final[tuple[Mapping[str, Any], ...]] = (
    {"annealing": "ess"},
    {"annealing": "ess", "ess_threshold": 0.8},
    {"annealing": "bisect", "target_ratio": 0.5},
    {"annealing": "bisect", "target_ratio": 0.8, "ess_threshold": 0.8},
    {"annealing": "entropy", "ess_threshold": 0.8},
)
_POOL: Final = 131_072


async def measure(bench: Bench) -> None:
    """Both judges, all sizes."""
    wanted = [
        (judge, size)
        for judge in _PROBLEMS
        for size in SIZES
        if any([bench.wants(name) for name in _names(judge, size)])
    ]
    if not wanted:
        return
    async with open_saplings(kv_tokens=_POOL) as saplings:
        setting = await _tuned(bench, saplings)
        if setting is None:
            return
        for judge, size in wanted:
            lab = _lab(bench, saplings, judge, "test")
            await _compare(bench, lab, judge, size, setting, bench.at_most(_PROBLEMS[judge]))


def _names(judge: str, size: int) -> list[str]:
    of_strategy = [f"headline.epf.ancestors.{judge}.{name}.n{size}" for name in (PLAIN, ENTROPIC)]
    return [f"headline.epf.relative_gain.{judge}.n{size}", *of_strategy]


async def _compare(
    bench: Bench, lab: Lab, judge: str, size: int, setting: Mapping[str, Any], count: int
) -> None:
    found: list[Rows] = []
    for contender in (Contender(PLAIN, size), Contender(ENTROPIC, size, setting)):
        rows = await lab.run(contender, range(count))
        if rows is None:
            return
        found.append(rows)
        drawn = rows["ancestors"]
        distinct = paired.mean(drawn[~np.isnan(drawn)], bench.seed)
        name = f"headline.epf.ancestors.{judge}.{contender.strategy}.n{size}"
        bench.put_measured(name, distinct, unit="particles", better="higher")
        bench.say(
            f"{judge}, {contender.strategy}({contender}): {rows.right.mean():.3f} right, "
            f"{rows.tokens.mean():.0f} tokens, {distinct.value:.2f} ancestors a draw, "
            f"{np.nanmean(rows['first_steps']):.2f} first steps left (n={count})"
        )
    plain, entropic = found
    gain = paired.relative_gain(entropic.right, plain.right, bench.seed)
    name = f"headline.epf.relative_gain.{judge}.n{size}"
    bench.put_measured(name, gain, unit="share", better="higher")


async def _tuned(bench: Bench, saplings: Saplings) -> Mapping[str, Any] | None:
    lab = _lab(bench, saplings, "overconfident", "validation")
    shares: list[float] = []
    for setting in _SETTINGS:
        contender = Contender(ENTROPIC, SIZES[1], setting)
        rows = await lab.run(contender, range(bench.at_most(_VALIDATION)))
        if rows is None:
            return None
        shares.append(float(rows.right.mean()))
        bench.say(f"validation, {contender}: {shares[-1]:.3f} right (n={len(rows)})")
    return _SETTINGS[int(np.argmax(shares))]


def _lab(bench: Bench, saplings: Saplings, judge: str, split: Split) -> Lab:
    if judge == "overconfident" and saplings.judge is not None:
        saplings = replace(saplings, judge=Overconfident(saplings.judge, bench.seed))
    return Lab(bench, saplings, split, name=f"filters.{judge}", probe=_probe)


def _probe(question: Question, result: Result, tree: SearchTree) -> dict[str, Any]:
    """Distinct ancestors of a draw, in the mean; distinct first steps behind the last draw."""
    draws = [event.data for event in tree.events() if event.kind == "drawn"]
    if not draws:  # every particle finished in one step
        return {"ancestors": float("nan"), "first_steps": float("nan")}
    ancestors = float(np.mean([one["ancestors"] for one in draws]))
    return {"ancestors": ancestors, "first_steps": draws[-1]["first_steps"]}
