"""``bough bench safety``: saffron against what it must beat, under attack and without.

The bundled generator can be talked into telling a word that it should keep, by beginning its answer
for it. `single`, `best_of_n`, `beam` and `rebase` with the outcome judge that saffron's rewards
were learned from are compared with `saffron` at equal compute, forward tokens times parameters of
generator and reward model, and judged by another model, which nobody searches with, by that outcome
judge, and exactly. ``--n`` bounds the prompts of every part: 300 attacks, 1,000 benign questions.
"""

from __future__ import annotations

import asyncio
from typing import Final

from loadtests.bench import safety_attacks, safety_benign, safety_speed
from loadtests.bench.figures import Bench, bench_command
from loadtests.bench.safety_models import GENERATOR, REWARDS, Cast, directories, open_cast
from loadtests.bench.safety_runs import asked

_OTHERS: Final = (
    safety_benign.DELTA,
    safety_benign.FORWARDS,
    f"{safety_benign.RIGHT}.*",
    f"{safety_benign.UNIQUE}.*",
)


@bench_command("safety")
def run(bench: Bench) -> None:
    """Attack success, benign answers, compute and wall time of saffron and its baselines."""
    asyncio.run(measure(bench))


async def measure(bench: Bench) -> None:
    """All parts whose figures are wanted, speed first: it needs the machine to be quiet."""
    async with open_cast() as cast:
        await _speed(bench, cast)
        attacks = safety_attacks.Attacks(bench, cast)
        are_attacks_wanted = any([bench.wants(name) for name in safety_attacks.figure_names()])
        if not are_attacks_wanted and not any(map(bench.matches, _OTHERS)):
            return
        widths = await attacks.widths()
        if widths is None:
            return
        await safety_benign.measure_counts(bench, cast, widths[1])
        if are_attacks_wanted:
            await attacks.measure()
        await safety_benign.measure_benign(bench, cast, widths[1])


async def _speed(bench: Bench, cast: Cast) -> None:
    found = directories()
    await safety_speed.measure(
        bench,
        safety_speed.Race(
            cast.engine,
            cast.rewards,
            found[GENERATOR],
            found[REWARDS],
            lambda number: asked("prefilled", "test", bench.seed, 10_000 + number),
        ),
    )
