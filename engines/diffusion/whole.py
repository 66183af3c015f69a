"""Whole texts for `Engine.sample`: one full denoising run per child."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from engines.base import Continuation, Delta, Sampling
from engines.child import TokenChild
from engines.diffusion.base import Course, DenoiseJob, DenoisingEngine, frozen_prompt
from engines.merging import merged
from engines.token_prefix import TokenPrefix


def whole_texts(
    engine: DenoisingEngine, claim: TokenPrefix, how: Sampling, seeds: Sequence[int]
) -> AsyncGenerator[Delta | Continuation]:
    """A child for each seed; it comes as one delta, for no text is sure before its end.

    Args:
        engine: Whose denoiser runs.
        claim: What the texts continue.
        how: Checked options.
        seeds: At least one.

    Raises:
        WrongLength: `how.max_tokens` does not fit; see `DenoisingEngine.course`.
        UnsupportedByEngine: Likewise.
    """
    plan = None
    if not TokenChild(0, claim, how, engine.info).is_over:
        left = None if how.max_tokens is None else how.max_tokens - claim.position
        plan = engine.course(len(claim.token_ids), replace(how, max_tokens=left))
        if len(claim.token_ids) + plan.length < engine.info.context_tokens:
            how = replace(how, max_tokens=claim.position + plan.length)  # full is an end, too
    draws = [
        _draw(engine, TokenChild(index, claim, how, engine.info), claim, plan, seed, how.deltas)
        for index, seed in enumerate(seeds)
    ]
    return draws[0] if len(draws) == 1 else merged(draws)


async def _draw(
    engine: DenoisingEngine,
    child: TokenChild,
    claim: TokenPrefix,
    plan: Course | None,
    seed: int,
    has_deltas: bool,
) -> AsyncGenerator[Delta | Continuation]:
    """One child; without a plan it was over before anything was drawn."""
    nfe = computed = 0
    if plan is not None:
        start = len(claim.token_ids)
        job = DenoiseJob(
            tokens=engine.denoiser.start(claim.token_ids, plan.length),
            frozen_mask=frozen_prompt(start, plan.length),
            step=0,
            stop_step=plan.kernel.steps,
            seed=seed,
            temperature=plan.temperature,
            kernel=plan.kernel,
            tenant=claim.tenant,
        )
        [done] = await engine.denoiser.denoise([job])
        nfe, computed = done.nfe, done.nfe * len(done.tokens)
        child.feed(done.tokens[start:], done.logps[start:])
        if has_deltas and (delta := child.delta()) is not None:
            yield delta
    yield replace(child.continuation(computed_tokens=computed), nfe=nfe)
