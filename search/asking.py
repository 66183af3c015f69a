"""A side question to the engine: selection, judging by prompt, summarising. Outside the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.base import ChatMessage, Continuation, Engine, Prefix, Sampling, prompt_size
from search.budget import Budget
from search.errors import BrokenContract, BudgetExhausted
from search.growth import closing


async def ask(
    engine: Engine,
    messages: Sequence[ChatMessage],
    how: Sampling,
    *,
    seed: int,
    budget: Budget,
) -> Continuation:
    """One whole answer to `messages`; its claim is given back already.

    Raises:
        BudgetExhausted: No token is left, or the deadline came first.
        EngineError: What the engine raised.
    """
    async with budget.in_time():
        claim = await engine.open(engine.render(messages), tenant=how.tenant)
        try:
            return await _answer(engine, claim, how, seed, budget)
        finally:
            claim.release()


async def _answer(
    engine: Engine, claim: Prefix, how: Sampling, seed: int, budget: Budget
) -> Continuation:
    room = engine.info.context_tokens - prompt_size(claim)
    bound = min(room, how.max_tokens) if how.max_tokens is not None else room
    left = budget.left("generated_tokens")
    if left is not None and left < bound:
        budget.cut("generated_tokens", bound)
        if not left:
            raise BudgetExhausted("generated_tokens", budget.limits.generated_tokens, bound)
        bound = left
        how = replace(how, max_tokens=bound)
    drawn = 0
    with budget.reserve(generated_tokens=bound) as reservation:
        try:
            stream = engine.sample(claim, replace(how, deltas=False), n=1, seeds=[seed])
            async with closing(stream):
                async for item in stream:
                    if isinstance(item, Continuation):
                        item.prefix.release()
                        drawn = item.num_tokens + item.num_overrun
                        return item
        finally:
            reservation.settle(generated_tokens=drawn)
    raise BrokenContract(f"engine {engine.info.model_id!r} ended a sample without a continuation")
