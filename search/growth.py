"""Growing branches: sampling what was admitted, and what is cut short.

Every job runs as one `Engine.sample`; the engine batches across them. At the deadline, children in
flight end where they are and stay in the tree as cancelled branches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace

from engines.base import Continuation, Delta, Engine, Finish
from search.answers import states_answer
from search.branch import Branch, Slot, Step
from search.claims import ClaimBook
from search.errors import BudgetExhausted
from search.jobs import Admission, Child, Job
from search.steps import seed_of, step_text, text_behind
from search.streaming import Agreement
from search.tree import SearchTree


class Grower:
    """Turns jobs into branches. One per run; one event loop owns it."""

    def __init__(
        self,
        engine: Engine,
        tree: SearchTree,
        claims: ClaimBook,
        agreement: Agreement,
        seed: int,
        *,
        is_live: bool,
    ) -> None:
        self._engine = engine
        self._tree = tree
        self._claims = claims
        self._agreement = agreement
        self._seed = seed
        self._admission = Admission(engine, tree, agreement, is_live=is_live)
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
            try:
                await self._admission.admit(job)
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
                            yield self._land(child, self._cut(child))
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
                if job.budget.seconds_left is None:
                    item = await anext(stream)
                else:
                    async with job.budget.in_time():
                        item = await anext(stream)
            except (StopAsyncIteration, BudgetExhausted):
                return
            child = job.children[item.index]
            if isinstance(item, Continuation):
                branch = self._finish(job, child, item)
                if branch is not None:
                    yield branch
            else:
                child.gain(item)
                self._claims.fly(child.slot, item.num_tokens)
                if not child.slot.parent.step.is_partial:
                    self._agreement.gain(child.slot, item)
            if job.budget.is_past_deadline and not all(one.is_done for one in job.children):
                job.budget.cut_at_deadline()
                return

    def _finish(self, job: Job, child: Child, new: Continuation) -> Branch | None:
        drawn = new.num_tokens + new.num_overrun
        job.budget.count(
            wasted_tokens=new.num_overrun,
            drafted_tokens=new.drafted,
            accepted_tokens=new.accepted,
        )
        child.reservation.settle(generated_tokens=drawn, candidates=1, nfe=new.nfe)
        text, is_partial = step_text(self._engine, child.slot.parent, new)
        step = Step(
            text,
            new.token_ids,
            new.logps,
            new.top_logps,
            new.finish,
            is_partial,
            new.counted_tokens,
        )
        finish = self._finish_of(job, child.slot, new, step)
        if finish is Finish.CANCELLED and not text:
            new.prefix.release()
            return None
        if finish is Finish.LENGTH and job.is_short:
            job.budget.cut("generated_tokens", drawn + 1)
        if not job.how.deltas:
            # Nobody said how far the others are; children of one call are drawn in step.
            for other in job.children:
                if not other.is_done and other is not child:
                    self._claims.fly_at_least(other.slot, new.num_tokens)
        branch = self._land(child, replace(step, finish=finish), settled=True)
        self._claims.hold(branch, new.prefix)
        if finish is not None:
            self._claims.release(branch)
        return branch

    def _cut(self, child: Child) -> Step:
        step, parent = child.as_cut(), child.slot.parent
        if parent.step.is_partial:
            text = text_behind(self._engine, parent, step.token_ids)
            step = replace(step, text=text.rstrip("�"))
        return step

    def _finish_of(self, job: Job, slot: Slot, new: Continuation, step: Step) -> Finish | None:
        if not new.finish.is_open:
            return new.finish
        if new.finish is Finish.BOUNDARY and job.closed_by:
            answer = slot.parent.whole_text + step.text
            if states_answer(answer, job.closed_by):
                return Finish.STOP
        num_tokens = slot.parent.num_tokens + step.num_tokens
        if job.how.max_tokens is not None and num_tokens >= job.how.max_tokens:
            return Finish.LENGTH
        if num_tokens and self._admission.context_left(num_tokens) <= 0:
            return Finish.CONTEXT
        return None

    def _land(self, child: Child, step: Step, *, settled: bool = False) -> Branch:
        child.is_done = True
        if not settled:
            child.reservation.settle(generated_tokens=step.num_tokens, candidates=1)
        self._claims.land(child.slot)
        branch = self._tree.add(child.slot, step)
        self._agreement.end(child.slot, branch)
        return branch

    def _discard(self, job: Job) -> None:
        for child in job.children:
            if not child.is_done:
                child.is_done = True
                num_tokens = child.num_tokens
                # how far a denoiser came is not known: what it may have taken counts as spent
                child.reservation.settle(generated_tokens=num_tokens, candidates=1, nfe=job.nfe)
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


@asynccontextmanager
async def closing(stream: AsyncIterator[Delta | Continuation]) -> AsyncIterator[None]:
    """Close the stream at the end: that cancels what the engine still draws."""
    try:
        yield
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()
