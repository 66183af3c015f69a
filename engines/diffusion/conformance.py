"""The laws that every denoiser keeps, as checks that any implementation can run.

    for check in CHECKS:
        await run_check(check, subject)

Each law is checked for every kernel that the denoiser names. The reference is the denoiser itself,
so a check says nothing of how good its texts are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Final, TypeAlias

from engines.base import TokenIds
from engines.conformance_trial import ContractBroken, require
from engines.diffusion.base import (
    Denoised,
    DenoiseJob,
    Denoiser,
    Kernel,
    frozen_prompt,
    max_nfe,
)
from engines.errors import DenoiseError, MaskInPrompt, UnknownKernel, WrongLength

__all__ = ["CHECKS", "Check", "ContractBroken", "DenoiserSubject", "run_check"]

_TOLERANCE: Final = 1e-3  # nats, between two batches of the same row


@dataclass(frozen=True)
class DenoiserSubject:
    """The denoiser under test.

    Attributes:
        make: A new denoiser each time.
        prompt: Ids that it reads, without a mask.
        length: Tokens of a text; a multiple of 4, at least 8.
        close: Ends a denoiser.
        kernels: Those to check; by default two of each name that the denoiser has.
    """

    make: Callable[[], Denoiser]
    prompt: TokenIds
    length: int = 8
    close: Callable[[Denoiser], Awaitable[None]] | None = None
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class _Trial:
    denoiser: Denoiser
    subject: DenoiserSubject
    kernels: tuple[Kernel, ...] = field(default=())

    def job(self, kernel: Kernel, seed: int = 0, temperature: float = 1.0) -> DenoiseJob:
        """A whole run."""
        subject = self.subject
        return DenoiseJob(
            tokens=self.denoiser.start(subject.prompt, subject.length),
            frozen_mask=frozen_prompt(len(subject.prompt), subject.length),
            step=0,
            stop_step=kernel.steps,
            seed=seed,
            temperature=temperature,
            kernel=kernel,
        )

    async def run(self, job: DenoiseJob) -> Denoised:
        [done] = await self.denoiser.denoise([job])
        return done


CheckBody: TypeAlias = Callable[[_Trial], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One law: its name and its body."""

    name: str
    body: CheckBody


async def run_check(check: Check, subject: DenoiserSubject) -> None:
    """Run one check on a new denoiser.

    Raises:
        ContractBroken: The law does not hold.
    """
    denoiser = subject.make()
    length = subject.length
    kernels = subject.kernels or tuple(
        kernel
        for name in denoiser.info.kernels
        for kernel in (
            Kernel(name, steps=length),
            Kernel(name, steps=length // 2, block_length=length // 2),
        )
    )
    try:
        await check.body(_Trial(denoiser, subject, kernels))
    finally:
        if subject.close is not None:
            await subject.close(denoiser)


async def start_is_prompt_and_masks(trial: _Trial) -> None:
    """`start` keeps the prompt, puts masks behind it, and refuses what cannot be."""
    denoiser, prompt, info = trial.denoiser, trial.subject.prompt, trial.denoiser.info
    require(denoiser.start(prompt, 3) == prompt + (info.mask_id,) * 3, "not prompt and 3 masks")
    for length in (0, -1, info.max_length - len(prompt) + 1):
        refused = _refuses(WrongLength, partial(denoiser.start, prompt, length))
        require(refused, f"a text of {length} tokens was not refused")
    refused = _refuses(MaskInPrompt, partial(denoiser.start, (*prompt, info.mask_id), 2))
    require(refused, "a mask in the prompt was not refused")


async def runs_reveal_all_and_keep_the_prompt(trial: _Trial) -> None:
    """After the last step no mask is left, and what was frozen is as it was."""
    prompt = trial.subject.prompt
    for kernel in trial.kernels:
        done = await trial.run(trial.job(kernel))
        require(done.tokens[: len(prompt)] == prompt, f"{kernel} altered the prompt")
        require(trial.denoiser.info.mask_id not in done.tokens, f"{kernel} left masks")
        require(done.step == kernel.steps, f"{kernel} ended at step {done.step}")


async def revealed_tokens_stay(trial: _Trial) -> None:
    """From step to step tokens only replace masks."""
    mask = trial.denoiser.info.mask_id
    for kernel in trial.kernels:
        for before, after in pairwise(await _stepwise(trial, trial.job(kernel, seed=3))):
            changed = [
                old
                for old, new in zip(before.tokens, after.tokens, strict=True)
                if old not in (mask, new)
            ]
            require(not changed, f"{kernel} altered {changed}")


async def cutting_a_run_changes_nothing(trial: _Trial) -> None:
    """The same seed gives the same text in one job and in one job per step; costs add up."""
    for kernel in trial.kernels:
        whole = await trial.run(trial.job(kernel, seed=5))
        parts = await _stepwise(trial, trial.job(kernel, seed=5))
        require(parts[-1].tokens == whole.tokens, f"{kernel}: cut runs differ")
        nfe = sum(part.nfe for part in parts[1:])
        require(nfe == whole.nfe, f"{kernel}: {whole.nfe} evaluations, cut {nfe}")
        logp = math.fsum(part.logp for part in parts[1:])
        require(abs(logp - whole.logp) < _TOLERANCE, f"{kernel}: logp {whole.logp}, cut {logp}")


async def batches_change_nothing(trial: _Trial) -> None:
    """Alone, in one call with others, or beside other calls: the same text."""
    jobs = [trial.job(kernel, seed) for kernel in trial.kernels for seed in (1, 2)]
    alone = [await trial.run(job) for job in jobs]
    together = await trial.denoiser.denoise(jobs)
    beside = await asyncio.gather(*(trial.run(job) for job in jobs))
    for job, *results in zip(jobs, alone, together, beside, strict=True):
        texts = {done.tokens for done in results}
        require(len(texts) == 1, f"{job.kernel}, seed {job.seed}: {len(texts)} texts")
        costs = {done.nfe for done in results}
        require(len(costs) == 1, f"{job.kernel}, seed {job.seed}: costs {costs}")


async def evaluations_are_counted(trial: _Trial) -> None:
    """What reveals nothing costs nothing, what reveals costs one, and `max_nfe` bounds all."""
    mask = trial.denoiser.info.mask_id
    for kernel in trial.kernels:
        job = trial.job(kernel, seed=7)
        whole = await trial.run(job)
        require(0 < whole.nfe <= max_nfe(job, mask), f"{kernel}: {whole.nfe} evaluations")
        for before, after in pairwise(await _stepwise(trial, job)):
            revealed = before.tokens.count(mask) - after.tokens.count(mask)
            fits = 1 <= after.nfe <= 2 if revealed else after.nfe == 0
            require(fits, f"{kernel}: {after.nfe} evaluations to reveal {revealed}")
        again = await trial.run(replace(job, tokens=whole.tokens))
        require(again.nfe == 0 and again.tokens == whole.tokens, f"{kernel}: a full row cost")


async def revealed_tokens_have_logps(trial: _Trial) -> None:
    """A log-probability not above 0 where something was revealed, and 0.0 elsewhere."""
    for kernel in trial.kernels:
        job = trial.job(kernel, seed=9)
        done = await trial.run(job)
        for position, (logp, is_frozen) in enumerate(zip(done.logps, job.frozen_mask, strict=True)):
            fits = logp == 0.0 if is_frozen else logp <= 0.0
            require(fits, f"{kernel}: logp {logp} at position {position}")


async def blocks_come_in_order(trial: _Trial) -> None:
    """Nothing is revealed in a block before the one before it is full."""
    if trial.denoiser.info.block_size:
        await _only_whole_blocks(trial)
        return
    mask, length = trial.denoiser.info.mask_id, trial.subject.length
    start = len(trial.subject.prompt)
    for name in trial.denoiser.info.kernels:
        kernel = Kernel(name, steps=length, block_length=length // 2)
        for part in await _stepwise(trial, trial.job(kernel, seed=11)):
            text = part.tokens[start:]
            has_second = any(token != mask for token in text[length // 2 :])
            require(not has_second or mask not in text[: length // 2], f"{name} ran ahead: {text}")


async def _only_whole_blocks(trial: _Trial) -> None:
    """Each step of a denoiser of whole blocks fills one, counted from the row's first token."""
    info = trial.denoiser.info
    for kernel in trial.kernels:
        states = await _stepwise(trial, trial.job(kernel, seed=11))
        for state in states[1:]:
            known = len(state.tokens) - state.tokens.count(info.mask_id)
            require(info.mask_id not in state.tokens[:known], "a block behind a mask was filled")
            is_whole = known % info.block_size == 0 or known == len(state.tokens)
            require(is_whole, f"{known} tokens are no blocks of {info.block_size}")


async def zero_temperature_is_greedy(trial: _Trial) -> None:
    """Without any chance all seeds give one text; kernels named stochastic may differ."""
    info = trial.denoiser.info
    for kernel in trial.kernels:
        if kernel.name in info.stochastic:
            continue
        texts = {(await trial.run(trial.job(kernel, seed, 0.0))).tokens for seed in range(4)}
        require(len(texts) == 1, f"{kernel} at temperature 0: {len(texts)} texts of 4 seeds")


async def wrong_jobs_are_refused(trial: _Trial) -> None:
    """Typed, and nothing of the same call is run."""
    good = trial.job(trial.kernels[0])
    free, size = trial.subject.length, len(good.tokens)
    mask = trial.denoiser.info.mask_id
    wrong: Sequence[tuple[type[DenoiseError], DenoiseJob]] = [
        (UnknownKernel, replace(good, kernel=replace(good.kernel, name="no such kernel"))),
        (WrongLength, replace(good, kernel=replace(good.kernel, block_length=free - 1))),
        (WrongLength, replace(good, frozen_mask=good.frozen_mask[1:])),
        (WrongLength, replace(good, tokens=(0,) * size, frozen_mask=(True,) * size)),
        (MaskInPrompt, replace(good, tokens=(mask, *good.tokens[1:]))),
        (DenoiseError, replace(good, temperature=-0.5)),
        (DenoiseError, replace(good, step=2, stop_step=2)),
        (DenoiseError, replace(good, stop_step=good.kernel.steps + 1)),
        (DenoiseError, replace(good, kernel=replace(good.kernel, top_p=0.0))),
    ]
    for kind, job in wrong:
        try:
            await trial.denoiser.denoise([good, job])
        except kind:
            continue
        raise ContractBroken(f"{job} was not refused with {kind.__name__}")


async def a_cancelled_call_harms_nobody(trial: _Trial) -> None:
    """Others go on, and the denoiser stays of use."""
    job = trial.job(trial.kernels[0], seed=13)
    expected = await trial.run(job)
    lost = asyncio.ensure_future(trial.denoiser.denoise([replace(job, seed=s) for s in range(4)]))
    kept = asyncio.ensure_future(trial.run(job))
    await asyncio.sleep(0)
    lost.cancel()
    await asyncio.wait([lost])
    require(lost.cancelled(), "a cancelled call did not end so")
    require((await kept).tokens == expected.tokens, "a call changed when another was cancelled")
    require((await trial.run(job)).tokens == expected.tokens, "later calls changed")


async def no_jobs_are_no_work(trial: _Trial) -> None:
    """An empty call answers at once with nothing."""
    require(await trial.denoiser.denoise([]) == [], "results without jobs")


async def _stepwise(trial: _Trial, job: DenoiseJob) -> list[Denoised]:
    """The state at the start, then after each step."""
    states = [Denoised(job.tokens, job.step, 0, (0.0,) * len(job.tokens))]
    for step in range(job.step, job.stop_step):
        now = replace(job, tokens=states[-1].tokens, step=step, stop_step=step + 1)
        states.append(await trial.run(now))
    return states


def _refuses(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


CHECKS: Final[tuple[Check, ...]] = tuple(
    Check(body.__name__, body)
    for body in (
        start_is_prompt_and_masks,
        runs_reveal_all_and_keep_the_prompt,
        revealed_tokens_stay,
        cutting_a_run_changes_nothing,
        batches_change_nothing,
        evaluations_are_counted,
        revealed_tokens_have_logps,
        blocks_come_in_order,
        zero_temperature_is_greedy,
        wrong_jobs_are_refused,
        a_cancelled_call_harms_nobody,
        no_jobs_are_no_work,
    )
)
