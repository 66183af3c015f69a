"""Denoising branches: running jobs, what they cost, and stored branches that enter a tree.

A branch of a denoising search is a row of tokens, some of them masked, at a step of the reverse
chain. Branches that go on hold no claim and no text; a branch at the chain's last step is a
finished answer. Everything is paid before it runs: evaluations (`nfe`), tokens, candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from engines.base import Engine, Finish, TokenIds
from engines.diffusion.base import (
    Denoised,
    DenoiseJob,
    DenoisingEngine,
)
from search.branch import Branch, Masked, Slot, Step
from search.budget import Budget, Limited, Reservation
from search.chains import Chain, Restored, bounds_of
from search.errors import BudgetExhausted
from search.extending import appended
from search.steps import seed_of
from search.workbench import Workbench

MASK_SIGN: Final = "\u2591"
"""Stands for a mask in the text for people."""


async def denoise(
    bench: Workbench, jobs: Sequence[tuple[Branch, DenoiseJob]], budget: Budget
) -> list[tuple[Slot, Step]]:
    """Run jobs as one batch; as many of them, from the first on, as can be paid.

    A branch's first child continues its random stream, as one job over all steps would, and every
    other child has its own. Out of time in the middle, nothing comes back, and what the jobs may
    have cost at most counts as spent: how far they came is not known.

    Raises:
        EngineError: What the denoiser raised.
    """
    engine = bench.engine
    assert isinstance(engine, DenoisingEngine)
    flights = _admitted(bench, jobs, budget, engine.denoiser.info.mask_id)
    if not flights:
        return []
    done: list[Denoised] = []
    try:
        async with budget.in_time():
            done = await engine.denoiser.denoise([flight.job for flight in flights])
    except BudgetExhausted:
        pass  # the deadline is an outcome
    finally:
        landed = [*done, *(None,) * (len(flights) - len(done))]
        for flight, one in zip(flights, landed, strict=True):
            flight.settle(one)
    return [
        (flight.slot, _step_of(engine, bench, flight.slot.parent, flight.job, one))
        for flight, one in zip(flights, done, strict=bool(done))
    ]


@dataclass(frozen=True)
class _Flight:
    slot: Slot
    job: DenoiseJob
    reservation: Reservation
    bounds: Mapping[str, int]
    mask_id: int

    def settle(self, done: Denoised | None) -> None:
        if done is None:
            self.reservation.settle(**self.bounds)
            return
        revealed = self.job.tokens.count(self.mask_id) - done.tokens.count(self.mask_id)
        self.reservation.settle(nfe=done.nfe, generated_tokens=revealed, candidates=1)


def _admitted(
    bench: Workbench,
    jobs: Sequence[tuple[Branch, DenoiseJob]],
    budget: Budget,
    mask_id: int,
) -> list[_Flight]:
    flights: list[_Flight] = []
    if jobs and budget.is_past_deadline:
        budget.cut_at_deadline()
        return flights
    for branch, job in jobs:
        bounds = bounds_of(job, mask_id)
        try:
            reservation = budget.reserve(**bounds)
        except BudgetExhausted as err:
            budget.cut(cast(Limited, err.what), int(err.wanted))
            break
        slot = bench.tree.submit(branch)
        seed = _seed(bench, slot, job)
        flights.append(
            _Flight(
                slot, replace(job, seed=seed, tenant=bench.tenant), reservation, bounds, mask_id
            )
        )
    return flights


def _seed(bench: Workbench, slot: Slot, job: DenoiseJob) -> int:
    state = slot.parent.state
    goes_on = state is not None and slot.index == 0 and job.step == state.step
    if goes_on and state is not None and state.seed is not None:
        return state.seed
    # A tree that goes on with the same seed must not draw again what it was stored with.
    purpose = f"after {bench.grown_before}" if bench.grown_before else ""
    return seed_of(bench.seed, slot.path, purpose)


def _step_of(
    engine: DenoisingEngine, bench: Workbench, parent: Branch, job: DenoiseJob, done: Denoised
) -> Step:
    """What a job that is done adds to its branch."""
    info = engine.denoiser.info
    before = parent.state.logps if parent.state is not None else ()
    logps = tuple(
        old + new for old, new in zip(before or (0.0,) * len(done.logps), done.logps, strict=True)
    )
    is_end = done.step == job.kernel.steps
    state = Masked(
        row=done.tokens,
        logps=logps,
        step=done.step,
        steps=job.kernel.steps,
        shown=shown(engine, done.tokens[sum(job.frozen_mask) :], info.mask_id),
        num_revealed=job.tokens.count(info.mask_id) - done.tokens.count(info.mask_id),
        nfe=done.nfe,
        seed=job.seed,
    )
    return _finished(engine, bench, parent, state) if is_end else Step("", state=state)


def _finished(engine: DenoisingEngine, bench: Workbench, parent: Branch, state: Masked) -> Step:
    """The answer in a row without masks, cut at its eos and at the request's stops."""
    prompt_tokens = bench.tree.prompt_tokens
    mask_id = engine.denoiser.info.mask_id
    pairs = [
        (token, logp)
        for token, logp in zip(state.row[prompt_tokens:], state.logps[prompt_tokens:], strict=True)
        if token != mask_id  # kernels without noise removal may leave one
    ]
    room = engine.info.context_tokens - prompt_tokens
    step = appended(
        engine, parent, tuple(token for token, _ in pairs), bench.sampling, context_left=room
    )
    return replace(
        step,
        logps=tuple(logp for _, logp in pairs[: len(step.token_ids)]),
        finish=step.finish or Finish.LENGTH,
        is_partial=False,
        state=state,
    )


def restored_step(bench: Workbench, chain: Chain, parent: Branch, node: Restored) -> Step:
    """What a stored node adds to its parent; log-probabilities were not stored."""
    engine = bench.engine
    assert isinstance(engine, DenoisingEngine)
    row = chain.start[: chain.prompt_tokens] + node.text
    mask_id = chain.info.mask_id
    before = chain.start if parent.state is None else parent.state.row
    state = Masked(
        row=row,
        logps=(0.0,) * len(row),
        step=node.step,
        steps=chain.steps,
        shown=shown(engine, node.text, mask_id),
        num_revealed=before.count(mask_id) - row.count(mask_id),
    )
    is_end = node.step == chain.steps
    return _finished(engine, bench, parent, state) if is_end else Step("", state=state)


def shown(engine: Engine, text: TokenIds, mask_id: int) -> str:
    """The text for people: every mask is a sign, the rest is decoded run by run."""
    parts: list[str] = []
    run: list[int] = []
    for token in text:
        if token != mask_id:
            run.append(token)
            continue
        if run:
            parts.append(engine.decode(tuple(run)))
            run = []
        parts.append(MASK_SIGN)
    return "".join(parts) + (engine.decode(tuple(run)) if run else "")
