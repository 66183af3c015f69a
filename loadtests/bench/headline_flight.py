"""ETS against REBASE in a pool that is too small: branches in flight, and throughput.

The pool is 60 % of what REBASE claims at its peak when nothing bounds it, with eight problems
offered at all times. Branches in flight are those drawn in one decode step, in the mean over the
steps. What had to be computed again is told by the same runs in the unbounded pool: tokens run
through the generator over those run there, minus 1. The two take turns on blocks of problems.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Final

from engines.embedded.engine import EmbeddedEngine
from loadtests.bench.figures import Bench
from loadtests.bench.headline_trees import WIDTHS, tuned
from loadtests.bench.saplings import Saplings, open_saplings, seed_of
from loadtests.bench.trials import Contender
from models.evaluate import held_out
from models.tasks import sums

OFFERED: Final = 8
SHARE: Final = 0.6
_BLOCKS: Final = 3
_PROBLEMS: Final = {16: 48, 64: 24, 256: 8}
_PAGE: Final = 4
_UNBOUNDED: Final = 131_072
_RUNNING: Final = 4096


@dataclass(frozen=True)
class Flight:
    """What one block of problems took.

    Attributes:
        in_flight: Branches drawn in a decode step, in the mean.
        computed: Tokens run through the generator.
        tokens: Tokens generated.
        seconds: Wall time.
        peak: Claimed tokens at the peak, whole pages.
    """

    in_flight: float
    computed: int
    tokens: int
    seconds: float
    peak: int


async def measure(bench: Bench) -> None:
    """All widths."""
    for width in WIDTHS:
        parts = ("in_flight", "throughput", "recomputed.rebase", "recomputed.ets")
        names = [f"headline.ets.{name}.w{width}" for name in parts]
        if any([bench.wants(name) for name in names]) and not bench.out_of_time():
            await _compare(bench, width)


async def _compare(bench: Bench, width: int) -> None:
    async with open_saplings(kv_tokens=_UNBOUNDED) as saplings:
        ets = await tuned(bench, saplings, width)
    if ets is None:
        return
    contenders = (Contender("rebase", width), ets)
    free = await _runs(bench, contenders, _UNBOUNDED)
    if free is None:
        return
    peak = max(one.peak for one in free["rebase"])
    bound = await _runs(bench, contenders, int(SHARE * peak))
    if bound is None:
        return
    bench.say(f"width {width}: rebase claims {peak} tokens at its peak; the pool has {SHARE:.0%}")
    for name, flights in bound.items():
        again = _total(flights, "computed") / _total(free[name], "computed") - 1
        bench.say(
            f"{name}: {_mean(flights, 'in_flight'):.1f} branches in flight "
            f"({_mean(free[name], 'in_flight'):.1f} unbounded), {again:.1%} computed again, "
            f"{_total(flights, 'tokens') / _total(flights, 'seconds'):.0f} tokens a second "
            f"({_total(free[name], 'tokens') / _total(free[name], 'seconds'):.0f} unbounded)"
        )
        figure = f"headline.ets.recomputed.{name}.w{width}"
        count = _BLOCKS * _count(bench, width)
        bench.put(figure, max(0.0, again), unit="share", n=count, better="lower")
    pairs = list(zip(bound["ets"], bound["rebase"], strict=True))
    _put(bench, f"headline.ets.in_flight.w{width}", [a.in_flight / b.in_flight for a, b in pairs])
    ratios = [a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in pairs]
    _put(bench, f"headline.ets.throughput.w{width}", ratios)


async def _runs(
    bench: Bench, contenders: tuple[Contender, ...], pool: int
) -> dict[str, list[Flight]] | None:
    """Blocks in turns, each contender first as often as last; None when time ran out."""
    found: dict[str, list[Flight]] = {one.strategy: [] for one in contenders}
    pool = -(-pool // _PAGE) * _PAGE
    generator = {"kv_tokens": pool, "page_tokens": _PAGE, "max_running": _RUNNING}
    async with open_saplings(kv_tokens=_UNBOUNDED, of_generator=generator) as saplings:
        for block in range(_BLOCKS):
            for contender in contenders[:: -1 if block % 2 else 1]:
                if bench.out_of_time():
                    return None
                found[contender.strategy].append(await _block(bench, saplings, contender, block))
    return found


async def _block(bench: Bench, saplings: Saplings, contender: Contender, block: int) -> Flight:
    """Some problems, eight at a time, under a tenant of their own: nothing is cached."""
    count = _count(bench, int(contender.width))
    problems = held_out(count * _BLOCKS, bench.seed)[block * count : (block + 1) * count]
    todo = list(enumerate(problems))
    engine, tokens = saplings.engine, 0
    assert isinstance(engine, EmbeddedEngine)
    engine.reset_peak()
    before, drawn, steps = engine.stats().tokens_computed, *engine.decoded
    began = time.perf_counter()

    async def worker() -> None:
        nonlocal tokens
        while todo:
            index, problem = todo.pop(0)
            name = f"{block}.{index}"
            spent = await _tokens_of(bench, saplings, contender, problem, name)
            tokens += spent

    async with asyncio.TaskGroup() as group:
        for _ in range(OFFERED):
            group.create_task(worker())
    seconds = time.perf_counter() - began
    after = engine.decoded
    return Flight(
        in_flight=(after[0] - drawn) / (after[1] - steps),
        computed=engine.stats().tokens_computed - before,
        tokens=tokens,
        seconds=seconds,
        peak=engine.peak_claimed_pages * _PAGE,
    )


async def _tokens_of(
    bench: Bench, saplings: Saplings, contender: Contender, problem: sums.Problem, name: str
) -> int:
    result = await saplings.ask(
        problem,
        contender.strategy,
        contender.params_at(0),
        seed_of("flight", bench.seed, name),
        tenant=f"{contender.strategy}.{name}",
    )
    return result.spent.generated_tokens


def _count(bench: Bench, width: int) -> int:
    return bench.at_most(_PROBLEMS[width])


def _put(bench: Bench, name: str, ratios: list[float]) -> None:
    middle = statistics.median(ratios)
    ends = {"low": min(ratios), "high": max(ratios)}
    bench.put(name, middle, unit="ratio", n=len(ratios), better="higher", **ends)


def _mean(flights: list[Flight], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in flights)


def _total(flights: list[Flight], name: str) -> float:
    return float(sum(getattr(one, name) for one in flights))
