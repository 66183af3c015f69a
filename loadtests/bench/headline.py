"""``bough bench headline``: what step-level search is published for, on the bundled models.

Every part compares strategies on the same problems with the same seeds; differences are paired,
intervals are 95 %. Knobs are chosen on the validation split by the rule that the part states, and
printed. ``--n`` bounds the number of problems of every part; by default each part has its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from loadtests.bench import (
    headline_annealed,
    headline_auto,
    headline_filters,
    headline_flight,
    headline_trees,
)
from loadtests.bench.figures import Bench, bench_command

_PARTS: Final[tuple[Callable[[Bench], Awaitable[None]], ...]] = (
    headline_annealed.measure,
    headline_auto.measure,
    headline_trees.measure,
    headline_flight.measure,
    headline_filters.measure,
)


@bench_command("headline")
def run(bench: Bench) -> None:
    """ETS, entropic particle filtering, annealed decoding and auto against what they must beat."""
    asyncio.run(measure(bench))


async def measure(bench: Bench) -> None:
    """All parts whose figures are wanted."""
    for part in _PARTS:
        if not bench.out_of_time():
            await part(bench)
