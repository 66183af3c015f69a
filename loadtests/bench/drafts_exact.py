"""On the sapling in float32: what each drafter gets accepted, and whether greedy answers change.

Every step drafts: the engine's own choice of when a draft pays is put aside, so that drafters are
compared on the same number of nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from engines.base import Continuation, Engine, Sampling, TokenIds
from engines.embedded.draft_budget import DraftBudget
from engines.embedded.engine import EmbeddedEngine
from loadtests.bench.drafts_workloads import WORKLOADS, Workload
from loadtests.bench.figures import Bench

DRAFTERS: Final = ("adaptive", "reference_aded", "ngram", "suffix", "token_recycling")
NODES: Final = 16
_ANSWERS: Final = 64  # by drafter and workload, half of them greedy
_MISMATCHES: Final = 200
_AT_A_TIME: Final = 4


class Always(DraftBudget):
    """Drafts at every step, the same number of nodes for every branch."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self._nodes = nodes

    def ask(self) -> int:
        """Always as many."""
        return self._nodes

    def cut(self, chances: Sequence[Sequence[float]], branches: int) -> list[int]:
        """Keep whole trees."""
        return [len(tree) for tree in chances]


def draft_always(engine: EmbeddedEngine, nodes: int) -> None:
    """Let this engine draft at every step."""
    engine._runtime.worker.drafting.budget = Always(nodes)


async def answer(engine: Engine, prompt: TokenIds, how: Sampling, seed: int) -> Continuation:
    """One answer."""
    prefix = await engine.open(prompt)
    try:
        async for item in engine.sample(prefix, how, seeds=[seed]):
            if isinstance(item, Continuation):
                item.prefix.release()
                return item
    finally:
        prefix.release()
    raise RuntimeError("the engine ended without a Continuation")


async def answers(
    engine: Engine, prompts: Sequence[TokenIds], how: Sampling, seed: int
) -> list[Continuation]:
    """All answers, a few at a time."""
    places = asyncio.Semaphore(_AT_A_TIME)

    async def one(at: int, prompt: TokenIds) -> Continuation:
        async with places:
            return await answer(engine, prompt, how, seed + at)

    return await asyncio.gather(*(one(at, prompt) for at, prompt in enumerate(prompts)))


async def put_accepted(
    bench: Bench, engine: EmbeddedEngine, drafter: str, workload: Workload
) -> None:
    """Accepted tokens a verification step, over greedy and temperature-1 answers alike."""
    draft_always(engine, NODES)
    each = max(1, bench.at_most(_ANSWERS) // 2)
    tokens = accepted = drafted = 0
    for number, temperature in enumerate((0.0, 1.0)):
        indices = range(number * each, (number + 1) * each)
        prompts = [workload.prompt(engine, "test", bench.seed, index) for index in indices]
        how = workload.sampling(temperature, drafter)
        for child in await answers(engine, prompts, how, bench.seed):
            tokens += len(child.token_ids) + len(child.overrun_ids)
            accepted += child.accepted
            drafted += child.drafted
    name = f"drafts.accepted.{drafter}.{workload.name}"
    steps = tokens - accepted
    bench.say(f"{name}: {accepted} accepted in {steps} steps, {drafted} drafted")
    bench.put(name, accepted / steps, unit="tokens", n=2 * each, better="higher")


async def put_mismatches(bench: Bench, engine: EmbeddedEngine) -> None:
    """Greedy answers with the drafter that differ from those without."""
    draft_always(engine, NODES)
    count = bench.at_most(_MISMATCHES)
    wrong = accepted = 0
    for number, workload in enumerate(WORKLOADS):
        share = count // len(WORKLOADS) + (number < count % len(WORKLOADS))
        prompts = [workload.prompt(engine, "test", bench.seed, 500 + at) for at in range(share)]
        plain = await answers(engine, prompts, workload.sampling(0.0), 0)
        drafted = await answers(engine, prompts, workload.sampling(0.0, "adaptive"), 0)
        for one, other in zip(plain, drafted, strict=True):
            wrong += one.token_ids + one.overrun_ids != other.token_ids + other.overrun_ids
            accepted += other.accepted
    bench.say(f"greedy: {wrong} of {count} answers differ, {accepted} drafted tokens accepted")
    bench.put("drafts.greedy_mismatches", wrong, unit="prompts", n=count, better="lower")
