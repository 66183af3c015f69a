"""Annealed decoding against fixed temperatures: sixteen samples of every problem.

The schedule's peak, floor and decay are chosen on the validation split by the sum of pass@16 and
majority@16; so is, for each of the two, the strongest of the fixed temperatures 0.7, 1.0 and 1.2
and the constant with the schedule's own mean temperature, over answers of median length. The gain
is over that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from loadtests.bench import paired
from loadtests.bench.figures import Bench
from loadtests.bench.questions import Question
from loadtests.bench.saplings import Saplings, open_saplings
from loadtests.bench.trials import Contender, Lab, Rows
from search.answers import extract_answer
from search.estimators import majority_at_k, pass_at_k
from search.run import Result
from search.schedules import Annealed, decay_for
from search.select import INVALID, vote
from search.tree import SearchTree

SAMPLES: Final = 16
MEASURES: Final = ("pass16", "majority16")
_FIXED: Final = (0.7, 1.0, 1.2)
_PEAKS: Final = (1.1, 1.2, 1.3)
_FLOORS: Final = (0.3, 0.7)
_REACHES: Final = (0.5, 1.0)
_PROBLEMS: Final = 1000
_VALIDATION: Final = 150


async def measure(bench: Bench) -> None:
    """Tune, then compare."""
    if not any([bench.wants(f"headline.annealed.{name}_gain") for name in MEASURES]):
        return
    async with open_saplings() as saplings:
        validation = _lab(bench, saplings, "validation")
        tuned = await _tuned(bench, validation)
        if tuned is None:
            return
        annealed, fixed = tuned
        await _compare(bench, _lab(bench, saplings, "test"), annealed, fixed)


async def _compare(
    bench: Bench, lab: Lab, annealed: Contender, fixed: Mapping[str, Contender]
) -> None:
    """Put both gains, each over the constant that was strongest on the validation split."""
    count = bench.at_most(_PROBLEMS)
    rows = await lab.run(annealed, range(count))
    if rows is None:
        return
    _say(bench, "test", annealed, rows)
    for measure, contender in fixed.items():
        other = await lab.run(contender, range(count))
        if other is None:
            return
        _say(bench, "test", contender, other)
        gain = paired.difference(rows[measure], other[measure], bench.seed)
        name = f"headline.annealed.{measure}_gain"
        bench.put_measured(name, gain, unit="share", better="higher")
    for temperature in _FIXED:
        other = await lab.run(_constant(temperature), range(count))
        if other is None:
            return
        _say(bench, "test", _constant(temperature), other)


async def _tuned(bench: Bench, lab: Lab) -> tuple[Contender, dict[str, Contender]] | None:
    """The annealed contender, and by measure the constant that it has to beat."""
    plain = await lab.run(_constant(1.0), range(bench.at_most(_VALIDATION)))
    if plain is None:
        return None
    length = float(np.median(plain["length"]))
    best: tuple[float, Contender] | None = None
    for schedule in _schedules(length):
        contender = Contender("self_consistency", SAMPLES, sampling={"schedule": schedule})
        rows = await lab.run(contender, range(bench.at_most(_VALIDATION)))
        if rows is None:
            return None
        _say(bench, "validation", contender, rows)
        worth = sum(float(rows[measure].mean()) for measure in MEASURES)
        if best is None or worth > best[0]:
            best = worth, contender
    assert best is not None
    chosen = best[1]
    heat = round(chosen.sampling["schedule"].mean(max(1, round(length))), 3)
    bench.say(f"median answer {length:.0f} tokens; mean temperature of the schedule {heat}")
    constants = [_constant(one) for one in (*_FIXED, heat)]
    found: list[Rows] = []
    for contender in constants:
        rows = await lab.run(contender, range(bench.at_most(_VALIDATION)))
        if rows is None:
            return None
        _say(bench, "validation", contender, rows)
        found.append(rows)
    strongest = {
        measure: constants[int(np.argmax([rows[measure].mean() for rows in found]))]
        for measure in MEASURES
    }
    return chosen, strongest


def _schedules(length: float) -> Sequence[Annealed]:
    """The grid, decays sized by the median answer."""
    return [
        Annealed(peak, floor, round(decay_for(reach * length, peak, floor), 1))
        for peak in _PEAKS
        for floor in _FLOORS
        for reach in _REACHES
    ]


def _constant(temperature: float) -> Contender:
    return Contender("self_consistency", SAMPLES, sampling={"temperature": temperature})


def _lab(bench: Bench, saplings: Saplings, split: Any) -> Lab:
    return Lab(bench, saplings, split, name="annealed", probe=_probe)


def _probe(question: Question, result: Result, tree: SearchTree) -> dict[str, float]:
    """Both measures over all samples drawn, and the median length of those that ended."""
    samples = [one.content for one in result.candidates]
    lengths = [one.num_tokens for one in result.candidates]
    right = [question.is_right(one) for one in samples]
    groups = vote([extract_answer(one) for one in samples], [1.0] * len(samples))
    stated = [group for group in groups if group.answer != INVALID]
    votes = [len(group.members) for group in stated]
    at = next(
        (at for at, group in enumerate(stated) if any(right[one] for one in group.members)), None
    )
    silent = SAMPLES - sum(votes)
    return {
        "pass16": pass_at_k(SAMPLES, sum(right), SAMPLES),
        "majority16": majority_at_k(votes, at, SAMPLES, silent=silent),
        "length": float(np.median(lengths)),
    }


def _say(bench: Bench, split: str, contender: Contender, rows: Rows) -> None:
    bench.say(
        f"{split}, {contender}: pass@16 {rows['pass16'].mean():.3f}, majority@16 "
        f"{rows['majority16'].mean():.3f}, {rows.tokens.mean():.0f} tokens (n={len(rows)})"
    )
