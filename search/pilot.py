"""How long answers are: a few drawn beside the tree, before the strategy begins.

They are paid for from the run's budget, with at most half of the tokens and half of the time that
are left, and end in nobody's candidates.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from engines.base import Continuation, Engine, Prefix, Sampling, prompt_size
from search.budget import Budget
from search.growth import closing
from search.steps import seed_of


async def pilot_lengths(
    engine: Engine, claim: Prefix, how: Sampling, *, n: int, seed: int, budget: Budget
) -> list[int]:
    """Tokens of each of `n` answers to `claim`, which stays the caller's; at least one number.

    An answer that was cut, by a limit or for want of budget, counts as long as it got. Where the
    budget has no token for a pilot, the answers will not be longer than what it has.

    Args:
        engine: Who generates.
        claim: The prompt.
        how: The request's sampling; its schedule and log-probabilities are left out.
        n: Answers to draw, at least 1.
        seed: The run's.
        budget: Who pays.

    Raises:
        EngineError: What the engine raised.
    """
    bound = engine.info.context_tokens - prompt_size(claim)
    if how.max_tokens is not None:
        bound = min(bound, how.max_tokens)
    left = budget.left("generated_tokens")
    if left is not None:
        if left < 2 * n:
            return [min(bound, left)]
        bound = min(bound, left // (2 * n))
    how = replace(how, schedule=None, logprobs=None, logps=False, deltas=True, max_tokens=bound)
    seeds = [seed_of(seed, (at,), "pilot") for at in range(n)]
    lengths = Counter(dict.fromkeys(range(n), 0))
    drawn = Counter(lengths)
    with budget.reserve(generated_tokens=n * bound) as reservation:
        try:
            await _measure(engine, claim, how, seeds, budget, lengths, drawn)
        finally:
            reservation.settle(generated_tokens=drawn.total())
    return [lengths[at] for at in range(n)]


async def _measure(
    engine: Engine,
    claim: Prefix,
    how: Sampling,
    seeds: list[int],
    budget: Budget,
    lengths: Counter[int],
    drawn: Counter[int],
) -> None:
    """Count the tokens of every child as they come: its own, and all that were drawn for it."""
    seconds = budget.seconds_left
    try:
        async with asyncio.timeout(None if seconds is None else seconds / 2) as timer:
            stream = engine.sample(claim, how, n=len(seeds), seeds=seeds)
            async with closing(stream):
                async for item in stream:
                    if isinstance(item, Continuation):
                        item.prefix.release()
                        lengths[item.index] = item.num_tokens
                        drawn[item.index] = item.num_tokens + item.num_overrun
                    else:
                        lengths[item.index] += item.num_tokens
                        drawn[item.index] = lengths[item.index]
    except TimeoutError:
        if not timer.expired():
            raise
