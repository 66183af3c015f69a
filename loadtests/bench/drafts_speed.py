"""Tokens a second with the drafter on over those without, cell by cell.

One engine serves both, in turns, on the same prompts with the same seeds; a repeat has prompts of
its own, a batch of them at a time. Prompts are computed beforehand, for both. A repeat's ratio is
that of tokens a second; a cell is the median over repeats with its 95 % bootstrap interval.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import bootstrap

from engines.base import Continuation, Engine, Prefix, Sampling
from loadtests.bench.drafts_workloads import WORKLOADS, Workload
from loadtests.bench.figures import Bench
from models.evaluate import Measured
from models.tasks.base import Split

DRAFTER: Final = "adaptive"
BATCHES: Final = (1, 4, 16)
TEMPERATURES: Final[Mapping[str, float]] = {"greedy": 0.0, "t1": 1.0}
_WARM: Final = 24  # answers of each workload
_WARM_BATCH: Final = 4
_LEAST_ANSWERS: Final[Mapping[str, int]] = {"sapling": 8, "wide": 2}
"""In a repeat, however small the batch: a shorter one would be over before it can be timed."""
_NARROW: Final = 0.10  # width of the interval of the cell that gained least
_MOST_REPEATS: Final = 49


@dataclass(frozen=True)
class Cell:
    """A workload, how tokens are drawn, and how many answers at a time."""

    workload: Workload
    mode: str
    batch: int

    @property
    def name(self) -> str:
        """The end of its figure's name."""
        return f"{self.workload.name}.{self.mode}.b{self.batch}"


CELLS: Final = tuple(
    Cell(workload, mode, batch)
    for workload in WORKLOADS
    for mode in TEMPERATURES
    for batch in BATCHES
)


class Cells:
    """Measures cells on one engine.

    Args:
        bench: Its seed, and how long there is.
        engine: Serves both contenders.
        model: Its name, for those who watch.
    """

    def __init__(self, bench: Bench, engine: Engine, model: str) -> None:
        self._bench = bench
        self._engine = engine
        self._model = model

    async def warm_up(self, cells: Sequence[Cell]) -> None:
        """Serve answers of every workload with the drafter on: prompts that no repeat has."""
        for workload in dict.fromkeys(cell.workload for cell in cells):
            prefixes = await self._prefixes(workload, "train", range(self._bench.at_most(_WARM)))
            for mode in TEMPERATURES:
                await self._tokens_per_s(prefixes, Cell(workload, mode, _WARM_BATCH), DRAFTER, 0)
            _release(prefixes)

    async def measure(self, cell: Cell, repeats: int, *, narrow: bool = False) -> Measured:
        """The cell's speed-up; with `narrow`, repeated until its interval is narrow."""
        ratios: list[float] = []
        while True:
            for _ in range(repeats):
                ratios.append(await self._repeat(cell, len(ratios)))
            found = median_of(ratios, self._bench.seed)
            is_done = found.high - found.low <= _NARROW or len(ratios) >= _MOST_REPEATS
            if is_done or not narrow or self._bench.out_of_time():
                break
        ends = f"{found.low:.2f} to {found.high:.2f}"
        self._bench.say(f"{self._model} {cell.name}: {found.value:.2f} ({ends}, n={found.n})")
        return found

    async def _repeat(self, cell: Cell, repeat: int) -> float:
        """One turn of both; who goes first alternates."""
        count = max(cell.batch, _LEAST_ANSWERS[self._model])
        first = 10_000 * (1 + CELLS.index(cell)) + repeat * count
        prefixes = await self._prefixes(cell.workload, "test", range(first, first + count))
        speeds: dict[str | None, float] = {}
        order: list[str | None] = [None, DRAFTER]
        for drafter in order if repeat % 2 == 0 else reversed(order):
            speeds[drafter] = await self._tokens_per_s(prefixes, cell, drafter, repeat)
        _release(prefixes)
        return speeds[DRAFTER] / speeds[None]

    async def _prefixes(
        self, workload: Workload, split: Split, indices: Sequence[int]
    ) -> list[Prefix]:
        """Open prompts and compute them."""
        prefixes = [
            await self._engine.open(workload.prompt(self._engine, split, self._bench.seed, index))
            for index in indices
        ]
        await self._engine.next_logprobs(prefixes, top_k=1)
        return prefixes

    async def _tokens_per_s(
        self, prefixes: Sequence[Prefix], cell: Cell, drafter: str | None, repeat: int
    ) -> float:
        how = cell.workload.sampling(TEMPERATURES[cell.mode], drafter)
        seed = self._bench.seed + 1000 * repeat
        places = asyncio.Semaphore(cell.batch)

        async def one(at: int, prefix: Prefix) -> int:
            async with places:
                return await _drawn(self._engine, prefix, how, seed + at)

        begin = time.perf_counter()
        counts = await asyncio.gather(*(one(at, prefix) for at, prefix in enumerate(prefixes)))
        return sum(counts) / (time.perf_counter() - begin)


async def _drawn(engine: Engine, prefix: Prefix, how: Sampling, seed: int) -> int:
    """Tokens of one answer."""
    count = 0
    async for item in engine.sample(prefix, how, seeds=[seed]):
        if isinstance(item, Continuation):
            count = len(item.token_ids) + len(item.overrun_ids)
            item.prefix.release()
    return count


def _release(prefixes: Sequence[Prefix]) -> None:
    for prefix in prefixes:
        prefix.release()


def median_of(ratios: Sequence[float], seed: int) -> Measured:
    """The median with its 95 % bootstrap interval."""
    value = float(np.median(ratios))
    if len(set(ratios)) < 2:
        return Measured(value, len(ratios), value, value)
    rng = np.random.default_rng(seed)
    found = bootstrap((ratios,), np.median, method="percentile", n_resamples=4000, rng=rng)
    ends = found.confidence_interval
    return Measured(value, len(ratios), float(ends.low), float(ends.high))


def worst_of(bench: Bench, stems: Mapping[str, str]) -> tuple[str, Cell] | None:
    """The model and the cell that gained least; None while a cell is missing."""
    found: list[tuple[float, str, Cell]] = []
    for model, stem in stems.items():
        for cell in CELLS:
            figure = bench.get(f"{stem}.{cell.name}")
            if figure is None:
                return None
            found.append((figure.value, model, cell))
    _, model, cell = min(found, key=lambda one: one[0])
    return model, cell
