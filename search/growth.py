"""Growing branches: admission of what is submitted together, sampling, and what is cut short.

Calls issued in the same turn of the event loop are admitted as one batch, in order of submission:
they get their numbers, their random streams and equal shares of what the budget still allows.
Each then runs as one `Engine.sample`; the engine batches across them. At the deadline, children in
flight end where they are and stay in the tree as cancelled branches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from engines.base import (
    Continuation,
    Delta,
    Engine,
    Finish,
    Sampling,
    TopLogps,
)
from search.answers import states_answer
from search.branch import Branch, Slot, Step
from search.budget import Budget, Reservation, level_share
from search.claims import ClaimBook
from search.steps import seed_of, step_text
from search.streaming import Agreement
from search.tree import SearchTree


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
    """

    branch: Branch
    n: int
    how: Sampling
    budget: Budget
    members: tuple[set[int], ...] = ()
    last: bool = False
    closed_by: Sequence[str] = ()
    is_short: bool = False
    children: list[_Child] = field(default_factory=list)
    admitted: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class _Child:
    """One child in flight, and what it gained so far."""

    slot: Slot
    reservation: Reservation
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    tops: list[TopLogps] = field(default_factory=list)
    is_done: bool = False

    def gain(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logps += delta.logps
        self.tops += delta.top_logps or ()

    def as_cut(self) -> Step:
        text = "".join(self.texts)
        if self.slot.parent.step.is_partial:
            text = text.lstrip("�")
        return Step(
            text=text,
            token_ids=tuple(self.token_ids),
            logps=tuple(self.logps),
            top_logps=tuple(self.tops) if len(self.tops) == len(self.token_ids) else None,
            finish=Finish.CANCELLED,
        )


class Grower:
    """Turns jobs into branches. One per run; one event loop owns it."""

    def __init__(
        self, engine: Engine, tree: SearchTree, claims: ClaimBook, agreement: Agreement, seed: int
    ) -> None:
        self._engine = engine
        self._tree = tree
        self._claims = claims
        self._agreement = agreement
        self._seed = seed
        self._pending: list[Job] = []
        self._num_active: dict[int, int] = {}
        self._doomed: set[int] = set()
        self._tasks: dict[Job, asyncio.Task[object]] = {}
        self._streams: set[AsyncIterator[Delta | Continuation]] = set()

    async def aclose(self) -> None:
        """Cancel whatever still grows: tasks that a failed strategy left behind, open iterators."""
        tasks = set(self._tasks.values()) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for stream in list(self._streams):
            async with self._closing(stream):
                pass

    async def grow(self, job: Job) -> AsyncGenerator[Branch]:
        """The job's children as they finish; closing it discards the rest.

        Raises:
            BrokenContract: The branch cannot be expanded any more.
            EngineError: What the engine raised.
        """
        claim = self._claims.claim(job.branch)
        with self._active(job):
            await self._admit(job)
            try:
                if job.children:
                    seeds = [seed_of(self._seed, child.slot.path) for child in job.children]
                    stream = self._engine.sample(claim, job.how, n=len(job.children), seeds=seeds)
                    async with (
                        self._closing(stream),
                        aclosing(self._drain(job, stream)) as branches,
                    ):
                        async for branch in branches:
                            yield branch
                    for child in job.children:
                        if not child.is_done and any(child.texts):
                            yield self._land(child, child.as_cut())
            finally:
                self._discard(job)
        # not reached when closed early: then the branch may be expanded again
        if job.last:
            self.release(job.branch)

    def release(self, branch: Branch) -> None:
        """Give back a branch's claim, now or when its last children have landed."""
        if self._num_active.get(branch.id):
            self._doomed.add(branch.id)
        else:
            self._claims.release(branch)

    async def _drain(
        self, job: Job, stream: AsyncIterator[Delta | Continuation]
    ) -> AsyncGenerator[Branch]:
        while True:
            try:
                async with asyncio.timeout(job.budget.seconds_left) as timer:
                    item = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not timer.expired():
                    raise
                job.budget.cut("generated_tokens", 1)
                return
            child = job.children[item.index]
            if isinstance(item, Continuation):
                branch = self._finish(job, child, item)
                if branch is not None:
                    yield branch
            else:
                child.gain(item)
                self._claims.fly(child.slot, len(item.token_ids))
                if not child.slot.parent.step.is_partial:
                    self._agreement.gain(child.slot, item)
            if job.budget.is_past_deadline and not all(one.is_done for one in job.children):
                job.budget.cut("generated_tokens", 1)
                return

    def _finish(self, job: Job, child: _Child, new: Continuation) -> Branch | None:
        drawn = len(new.token_ids) + len(new.overrun_ids)
        job.budget.count(wasted_tokens=len(new.overrun_ids))
        child.reservation.settle(generated_tokens=drawn, candidates=1, nfe=new.nfe)
        text, is_partial = step_text(self._engine, child.slot.parent, new)
        step = Step(text, new.token_ids, new.logps, new.top_logps, new.finish, is_partial)
        finish = self._finish_of(job, child.slot, new, step)
        if finish is Finish.CANCELLED and not text:
            new.prefix.release()
            return None
        if finish is Finish.LENGTH and job.is_short:
            job.budget.cut("generated_tokens", drawn + 1)
        branch = self._land(child, replace(step, finish=finish), settled=True)
        self._claims.hold(branch, new.prefix)
        if finish is not None:
            self._claims.release(branch)
        return branch

    def _finish_of(self, job: Job, slot: Slot, new: Continuation, step: Step) -> Finish | None:
        if not new.finish.is_open:
            return new.finish
        if new.finish is Finish.BOUNDARY and job.closed_by:
            answer = slot.parent.text + step.text
            if states_answer(answer, job.closed_by):
                return Finish.STOP
        num_tokens = slot.parent.num_tokens + len(step.token_ids)
        if job.how.max_tokens is not None and num_tokens >= job.how.max_tokens:
            return Finish.LENGTH
        if num_tokens and self._context_left(num_tokens) <= 0:
            return Finish.CONTEXT
        return None

    def _land(self, child: _Child, step: Step, *, settled: bool = False) -> Branch:
        child.is_done = True
        if not settled:
            child.reservation.settle(generated_tokens=len(step.token_ids), candidates=1)
        self._claims.land(child.slot)
        branch = self._tree.add(child.slot, step)
        self._agreement.end(child.slot, branch)
        return branch

    def _discard(self, job: Job) -> None:
        for child in job.children:
            if not child.is_done:
                child.is_done = True
                num_tokens = len(child.token_ids)
                child.reservation.settle(generated_tokens=num_tokens, candidates=1)
                job.budget.count(wasted_tokens=num_tokens)
                self._claims.land(child.slot)
                self._agreement.end(child.slot, None)

    @asynccontextmanager
    async def _closing(self, stream: AsyncIterator[Delta | Continuation]) -> AsyncIterator[None]:
        self._streams.add(stream)
        try:
            async with closing(stream):
                yield
        finally:
            self._streams.discard(stream)

    @contextmanager
    def _active(self, job: Job) -> Iterator[None]:
        branch = job.branch
        self._num_active[branch.id] = self._num_active.get(branch.id, 0) + 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks[job] = task
        try:
            yield
        finally:
            del self._tasks[job]
            self._num_active[branch.id] -= 1
            if not self._num_active[branch.id] and branch.id in self._doomed:
                self._doomed.discard(branch.id)
                self._claims.release(branch)

    async def _admit(self, job: Job) -> None:
        """Wait for the batch of everything submitted in this turn of the event loop."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._admit_pending)
        self._pending.append(job)
        try:
            await job.admitted
        except asyncio.CancelledError:
            self._discard(job)
            raise

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
        counts = self._affordable(budget, wanted)
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

    def _affordable(self, budget: Budget, wanted: list[int]) -> list[int]:
        if budget.is_past_deadline or budget.left("nfe") == 0:
            budget.cut("nfe", 1)
            return [0] * len(wanted)
        left = budget.left("candidates")
        if left is None or left >= sum(wanted):
            return wanted
        budget.cut("candidates", sum(wanted))
        return _first(wanted, left)

    def _begin(self, job: Job, count: int, share: int, *, is_short: bool) -> None:
        if is_short:
            job.is_short = True
            job.how = replace(job.how, max_tokens=job.branch.num_tokens + share)
        if job.last:
            self._agreement.promise(job.branch)
        for _ in range(count):
            slot = self._tree.submit(job.branch)
            for members in job.members:
                members.add(slot.id)
            reservation = job.budget.reserve(generated_tokens=share, candidates=1)
            job.children.append(_Child(slot, reservation))
            self._agreement.begin(slot)

    def _cap(self, job: Job) -> int:
        """The most tokens that one child of the job can have."""
        position = job.branch.num_tokens
        bounds = [self._context_left(position)]
        if job.how.max_tokens is not None:
            bounds.append(job.how.max_tokens - position)
        if job.how.max_step_tokens is not None:
            bounds.append(job.how.max_step_tokens)
        return max(0, min(bounds))

    def _context_left(self, position: int) -> int:
        return self._engine.info.context_tokens - self._tree.prompt_tokens - position


def _first(counts: list[int], total: int) -> list[int]:
    """As much of `counts` as `total` allows, the first ones first."""
    kept = []
    for count in counts:
        kept.append(min(count, total))
        total -= kept[-1]
    return kept


@asynccontextmanager
async def closing(stream: AsyncIterator[Delta | Continuation]) -> AsyncIterator[None]:
    """Close the stream at the end: that cancels what the engine still draws."""
    try:
        yield
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()
