"""Calls of `Search.expand`: how those issued together share what the budget still allows.

Calls issued in the same turn of the event loop are admitted as one batch, in order of submission:
they get their numbers, and with them their random streams, and equal shares of what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from engines.base import Delta, Engine, Finish, Sampling, TopLogps
from search.branch import Branch, Slot, Step
from search.budget import Budget, Reservation, level_share
from search.chains import sample_nfe
from search.streaming import Agreement
from search.tree import SearchTree

_SLOW_START_S: Final = 60.0
_SLOW_TOKEN_S: Final = 0.25


@dataclass(eq=False)
class Job:
    """One call of `Search.expand`.

    Attributes:
        branch: What to continue.
        n: Children wanted.
        how: How to draw them.
        budget: Who pays.
        members: Receives the ids of the children.
        last: Whether the branch gets no children after these.
        closed_by: Phrases that end the answer when a completed step contains one.
        counts_discarded: Whether children may be discarded while the run goes on, so that what
            they drew until then must be known.
        nfe: The most evaluations that one child may take; 0 where nothing denoises.
    """

    branch: Branch
    n: int
    how: Sampling
    budget: Budget
    members: tuple[set[int], ...] = ()
    last: bool = False
    closed_by: Sequence[str] = ()
    counts_discarded: bool = False
    is_short: bool = False
    nfe: int = 0
    children: list[Child] = field(default_factory=list)
    admitted: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class Child:
    """One child in flight, and what it gained so far."""

    slot: Slot
    reservation: Reservation
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    tops: list[TopLogps] = field(default_factory=list)
    num_tokens: int = 0
    is_done: bool = False

    def gain(self, delta: Delta) -> None:
        """Remember what it gained."""
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logps += delta.logps
        self.tops += delta.top_logps or ()
        self.num_tokens += delta.num_tokens

    def as_cut(self) -> Step:
        """The step that it is when it ends here."""
        return Step(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            logps=tuple(self.logps),
            top_logps=tuple(self.tops) if len(self.tops) == len(self.token_ids) else None,
            finish=Finish.CANCELLED,
            counted_tokens=None if self.num_tokens == len(self.token_ids) else self.num_tokens,
        )


class Admission:
    """Numbers children and reserves what they may cost. One per run; one event loop owns it."""

    def __init__(
        self, engine: Engine, tree: SearchTree, agreement: Agreement, *, is_live: bool
    ) -> None:
        self._is_live = is_live
        self._engine = engine
        self._info = engine.info
        self._tree = tree
        self._agreement = agreement
        self._pending: list[Job] = []

    async def admit(self, job: Job) -> None:
        """Wait for the batch of everything submitted in this turn of the event loop."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._admit_pending)
        self._pending.append(job)
        await job.admitted

    def _admit_pending(self) -> None:
        jobs = [job for job in self._pending if not job.admitted.done()]
        self._pending = []
        for budget in dict.fromkeys(job.budget for job in jobs):
            self._admit_batch(budget, [job for job in jobs if job.budget is budget])
        for job in jobs:
            job.admitted.set_result(None)

    def _admit_batch(self, budget: Budget, jobs: list[Job]) -> None:
        caps = [self._cap(job) for job in jobs]
        wanted = [job.n if cap else 0 for job, cap in zip(jobs, caps, strict=True)]
        counts = self._affordable(budget, jobs, wanted)
        left = budget.left("generated_tokens")
        if left is None:
            share = max(caps, default=0)
        else:
            share = level_share(left, list(zip(counts, caps, strict=True)))
            if not share and any(counts):  # fewer tokens than children: one for the first ones
                budget.cut("generated_tokens", sum(counts))
                counts, share = _first(counts, left), 1
        for job, count, cap in zip(jobs, counts, caps, strict=True):
            self._begin(job, count, min(cap, share), is_short=share < cap)

    def _affordable(self, budget: Budget, jobs: list[Job], wanted: list[int]) -> list[int]:
        if budget.is_past_deadline:
            budget.cut_at_deadline()
            return [0] * len(wanted)
        wanted = self._denoised(budget, jobs, wanted)
        left = budget.left("candidates")
        if left is None or left >= sum(wanted):
            return wanted
        budget.cut("candidates", sum(wanted))
        return _first(wanted, left)

    def _denoised(self, budget: Budget, jobs: list[Job], wanted: list[int]) -> list[int]:
        """As many children as there are evaluations for, where the engine denoises."""
        left = budget.left("nfe")
        counts = []
        for job, count in zip(jobs, wanted, strict=True):
            if count:
                job.nfe = sample_nfe(self._engine, self._tree.prompt_tokens, job.how)
            counts.append(count)
            if left is not None and job.nfe:
                counts[-1] = min(count, left // job.nfe)
                left -= counts[-1] * job.nfe
                if counts[-1] < count:
                    budget.cut("nfe", job.nfe)
        return counts

    def _begin(self, job: Job, count: int, share: int, *, is_short: bool) -> None:
        if is_short:
            job.is_short = True
            job.how = replace(job.how, max_tokens=job.branch.num_tokens + share)
        # What is in flight is read by whoever streams, and kept when the deadline cuts it.
        deltas = self._is_live or job.counts_discarded or _may_be_cut(job, share)
        job.how = replace(job.how, deltas=deltas)
        if job.last:
            self._agreement.promise(job.branch)
        for _ in range(count):
            slot = self._tree.submit(job.branch)
            for members in job.members:
                members.add(slot.id)
            reservation = job.budget.reserve(generated_tokens=share, candidates=1, nfe=job.nfe)
            job.children.append(Child(slot, reservation))
            self._agreement.begin(slot)

    def _cap(self, job: Job) -> int:
        """The most tokens that one child of the job can have."""
        position = job.branch.num_tokens
        bounds = [self.context_left(position)]
        if job.how.max_tokens is not None:
            bounds.append(job.how.max_tokens - position)
        if job.how.max_step_tokens is not None:
            bounds.append(job.how.max_step_tokens)
        return max(0, min(bounds))

    def context_left(self, position: int) -> int:
        """Tokens that still fit after so many of the answer."""
        return self._info.context_tokens - self._tree.prompt_tokens - position


def _may_be_cut(job: Job, share: int) -> bool:
    """Whether the deadline may come before `share` tokens are drawn, even if slowly.

    The operator's limit on a run is minutes away as a rule. Reading every token of every child for
    its sake would cost an engine with a process of its own some 4 % of its throughput.
    """
    left = job.budget.seconds_left
    return left is not None and left < _SLOW_START_S + _SLOW_TOKEN_S * share


def _first(counts: list[int], total: int) -> list[int]:
    """As much of `counts` as `total` allows, the first ones first."""
    kept = []
    for count in counts:
        kept.append(min(count, total))
        total -= kept[-1]
    return kept
