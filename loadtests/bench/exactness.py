"""Whether the embedded engine says what Hugging Face says, and the same thing twice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from engines.base import Continuation, Engine, Sampling, TokenIds
from loadtests.bench import baselines


@dataclass(frozen=True)
class Agreement:
    """One greedy answer beside the peer's.

    Attributes:
        is_equal: Whether every token is the same.
        logp_gap: Largest difference between our log-probabilities and the peer's, in nats.
    """

    is_equal: bool
    logp_gap: float


def random_prompts(vocab_size: int, count: int, seed: int, longest: int) -> list[TokenIds]:
    """Prompts of 8 to `longest` random tokens."""
    rng = random.Random(f"greedy:{seed}")
    sizes = [rng.randint(8, longest) for _ in range(count)]
    return [tuple(rng.randrange(vocab_size) for _ in range(size)) for size in sizes]


async def agreements(
    engine: Engine, peer: Any, prompts: list[TokenIds], max_tokens: int
) -> list[Agreement]:
    """Greedy answers to all prompts, ours batched together, the peer's one by one.

    The log-probabilities of our tokens are compared with those of a dense pass over them.
    """
    how = Sampling(temperature=0.0, max_tokens=max_tokens, deltas=False)
    children = await asyncio.gather(*(_answer(engine, prompt, how) for prompt in prompts))
    found = []
    for prompt, child in zip(prompts, children, strict=True):
        drawn = child.token_ids + child.overrun_ids
        theirs = _until(baselines.greedy(peer, prompt, max_tokens), engine.info.eos_ids)
        gap = 0.0
        if child.token_ids:
            dense = baselines.logps_of(peer, prompt, child.token_ids)
            gap = max(abs(a - b) for a, b in zip(child.logps, dense, strict=True))
        found.append(Agreement(drawn == theirs, gap))
    return found


async def _answer(engine: Engine, prompt: TokenIds, how: Sampling) -> Continuation:
    prefix = await engine.open(prompt)
    try:
        async for item in engine.sample(prefix, how):
            if isinstance(item, Continuation):
                item.prefix.release()
                return item
    finally:
        prefix.release()
    raise RuntimeError("the engine ended without a Continuation")


def _until(ids: TokenIds, ends: frozenset[int]) -> TokenIds:
    """Up to and including the first of `ends`."""
    at = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return ids[: at + 1]
