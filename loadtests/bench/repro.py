"""Whether a seed gives the same answer alone, in a crowd, and on a warm cache."""

from __future__ import annotations

import asyncio
from typing import Final

from engines.base import TokenIds
from loadtests.bench.figures import Bench
from loadtests.bench.saplings import Saplings, open_saplings, seed_of
from models.evaluate import held_out
from models.tasks import sums

CROWD: Final = 32
_STRATEGY: Final = "ets"
_PARAMS: Final = {"width": 8}


def measure_repro(bench: Bench, seeds: int) -> None:
    """``repro.mismatch_share``: of 2 x `seeds` answers, how many differ from the lone, cold one.

    Every seed is one run of `ets` with a width of 8 on a word problem: first alone under a tenant
    of its own, so that its cache is cold; then again under that tenant, with a warm cache; then
    under another new tenant in a batch of 32 runs that start together. Two answers match when all
    their tokens do.
    """
    found = asyncio.run(_mismatches(bench, seeds))
    if found is not None:
        bench.put(
            "repro.mismatch_share", found / (2 * seeds), unit="share", n=2 * seeds, better="lower"
        )


async def _mismatches(bench: Bench, seeds: int) -> int | None:
    """None when time ran out."""
    problems = held_out(max(seeds, CROWD), bench.seed)
    async with open_saplings() as saplings:
        alone, warm = [], []
        for index, problem in enumerate(problems[:seeds]):
            if bench.out_of_time():
                return None
            alone.append(await _answer(saplings, bench, problem, index, "alone"))
            warm.append(await _answer(saplings, bench, problem, index, "alone"))
        crowded: list[TokenIds] = []
        for start in range(0, seeds, CROWD):
            # The last batch is filled up, so that everyone has 31 others.
            members = [index % len(problems) for index in range(start, start + CROWD)]
            crowded += await asyncio.gather(
                *(_answer(saplings, bench, problems[i], i, f"crowd{start}") for i in members)
            )
        pairs = [*zip(alone, warm, strict=True), *zip(alone, crowded[:seeds], strict=True)]
    return sum(one != other for one, other in pairs)


async def _answer(
    saplings: Saplings, bench: Bench, problem: sums.Problem, index: int, tenant: str
) -> TokenIds:
    seed = seed_of("repro", bench.seed, index)
    name = f"{tenant}:{index}"
    result = await saplings.ask(problem, _STRATEGY, _PARAMS, seed, tenant=name)
    return result.answers[0].token_ids
