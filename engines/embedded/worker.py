"""What computes: schedule, run, draw, deliver, over and over, on the compute thread.

The event loop hands jobs in under the ledger's lock and is woken through `call_soon_threadsafe`; it
never waits for a forward pass. All scheduling state is touched here only, with the lock held;
tensors are touched without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engines.base import Continuation, Finish
from engines.drafters.base import TokenTree
from engines.drafters.verify import Walk
from engines.embedded.accounting import Ledger
from engines.embedded.attention import Plan, Planner, Row, index_of
from engines.embedded.compute import ComputeThread
from engines.embedded.decoding import DecodeBatch
from engines.embedded.drafting import Drafting, Verified
from engines.embedded.jobs import GenerateJob, Job, ReadJob, ReadResult
from engines.embedded.model import Decoder
from engines.embedded.pages import KvPool
from engines.embedded.reading import finished
from engines.embedded.sample import Draw, NodeDraw, Sampler
from engines.embedded.schedule import Scheduler
from engines.embedded.sequence import Branch, Reading
from engines.embedded.sequence import Sequence as Run
from engines.embedded.verification import Verification
from engines.errors import EngineClosed, EngineError

_log = logging.getLogger(__name__)


class Worker:
    """Runs sequences through one decoder.

    Args:
        decoder: The model.
        pool: Its cache.
        ledger: Its pages.
        scheduler: Its queue.
        context_tokens: The most tokens of a sequence.
        finish_branch: Makes a branch's Continuation; called with the lock held, after the branch is
            retired.
        compute: The thread to run on.
        drafting: Who guesses tokens ahead, for branches that want it.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KvPool,
        ledger: Ledger,
        scheduler: Scheduler,
        *,
        context_tokens: int,
        finish_branch: Callable[[Branch, int], Continuation],
        compute: ComputeThread,
        drafting: Drafting,
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._ledger = ledger
        self._scheduler = scheduler
        self._context_tokens = context_tokens
        self._finish_branch = finish_branch
        self._planner = Planner(pool.num_pages, pool.page_tokens, decoder.device, decoder.dtype)
        self.drafting = drafting
        # What others do with the cores is not what a step costs.
        self._clock = time.thread_time if decoder.device.type == "cpu" else time.perf_counter
        self._sampler: Sampler | None = None
        self._sampled: list[Branch] = []  # whose the sampler is
        self._batch: DecodeBatch | None = None
        self._batch_version = -1
        self._has_cancelled = False
        self.is_closed = False
        self._jobs: set[Job] = set()  # with unfinished sequences
        self._news: dict[Job, None] = {}
        self.tokens_computed = 0
        self.rows_computed = 0
        self.tokens_decoded = 0
        self.decode_steps = 0
        self.tokens_drafted = 0
        self.tokens_accepted = 0
        self._compute = compute
        compute.join(self)

    def submit(self, job: Job, sequences: Sequence[Branch | Reading]) -> None:
        """Queue a job's sequences.

        Raises:
            EngineClosed: The worker has stopped.
        """
        with self._ledger.lock:
            if self.is_closed:
                raise EngineClosed("the engine is closed")
            job.sequences = sequences
            job.unfinished = len(sequences)
            if sequences:
                self._jobs.add(job)
            for sequence in sequences:
                self._scheduler.submit(sequence)
        self._compute.wake()

    async def cancel(self, job: Job) -> None:
        """Stop what is left of `job`; returns when the worker has let go of it."""
        with self._ledger.lock:
            if not job.unfinished:
                return
            for sequence in job.sequences:
                sequence.is_cancelled = True
            self._has_cancelled = True
        self._compute.wake()
        while job.unfinished:
            await job.news()

    def close(self) -> None:
        """Leave the thread after the step in progress; what is left fails with EngineClosed."""
        with self._ledger.lock:
            if self.is_closed:
                return
            self.is_closed = True
        self._compute.leave(self)
        with self._ledger.lock:
            self._fail(EngineClosed("the engine was closed while this was running"))
        self._flush()

    def turn(self) -> bool:
        """One step of whatever runs; False when there is nothing to do."""
        try:
            return self._turn()
        except Exception as err:
            _log.exception("the engine's books are wrong; it cannot go on")
            self._die(EngineClosed(f"the engine failed and cannot go on: {err}"))
            return False

    def _turn(self) -> bool:
        with self._ledger.lock:
            if self._has_cancelled:
                self._has_cancelled = False
                for dropped in self._scheduler.drop_cancelled():
                    self._settle(dropped)
            has_work = bool(self._scheduler.running or self._scheduler.num_waiting)
        if has_work:
            try:
                self._step()
            except Exception as err:
                _log.exception("a step of the engine failed")
                self._batch = None
                with self._ledger.lock:
                    self._fail(EngineError(f"the engine failed on this batch: {err}"))
        self._flush()
        return has_work

    @torch.inference_mode()
    def _step(self) -> None:
        with self._ledger.lock:
            copies = self._scheduler.admit()
            if not self._scheduler.running and self._scheduler.num_waiting:
                raise EngineError("nothing runs, and the next sequence does not fit the cache")
        self._pool.copy(copies)
        with self._ledger.lock:
            self._scheduler.copied()
            batch = self._scheduler.prefill()
        if batch:
            self._prefill(batch)
        with self._ledger.lock:
            branches = self._scheduler.decode()
        if branches:
            self._decode(branches)

    def _prefill(self, batch: list[tuple[Run, int]]) -> None:
        size = self._pool.page_tokens
        rows: list[Row] = []
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence, count in batch:
            start = sequence.computed
            rows.append(Row(sequence.shared_pages, sequence.own, start, count))
            tokens += sequence.tokens[start : start + count]
            span = range(start, start + count)
            positions += span
            slots += [sequence.page_at(p, size) * size + p % size for p in span]
        hidden = self._forward(
            np.array(tokens), np.array(positions), np.array(slots), self._planner.plan(rows)
        )
        at = 0
        read: list[Reading] = []
        for sequence, count in batch:
            if isinstance(sequence, Reading):
                skipped = max(0, sequence.read_from - sequence.computed)
                sequence.hidden.append(hidden[at + min(skipped, count) : at + count])
            at += count
            sequence.computed += count
            sequence.computed_tokens += count
            if isinstance(sequence, Reading):
                if not sequence.pending:
                    read.append(sequence)
            elif sequence.pending == 1:
                self._publish(sequence)
        if read:
            self._finish_readings(read)

    def _publish(self, sequence: Run) -> None:
        """Let siblings find a prompt that has just been run; nothing is found that is not there."""
        with self._ledger.lock:
            copy = self._scheduler.short_page(sequence)
        self._pool.copy([copy] if copy else [])
        with self._ledger.lock:
            self._scheduler.seal_prompt(sequence, has_copy=copy is not None)

    def _decode(self, branches: list[Branch]) -> None:
        has_drafters = any(branch.drafter is not None for branch in branches)
        trees = self.drafting.propose(branches) if has_drafters else None
        started = self._clock()
        rows = len(branches)
        if trees is None:
            ended = self._draw(branches)
        else:
            rows, ended = self._verify(branches, trees)
        self.decode_steps += 1
        if has_drafters:
            self.drafting.budget.took(len(branches), rows, self._clock() - started)
            for branch in ended:
                self.drafting.ended(branch)
        if ended:
            with self._ledger.lock:
                for branch in ended:
                    self._finish(branch)

    def _draw(self, branches: list[Branch]) -> list[Branch]:
        """One token for every branch; those that ended."""
        batch = self._decode_batch(branches)
        hidden = self._forward(batch.tokens, batch.positions, batch.slots, batch.plan, batch.row_of)
        self.tokens_decoded += len(branches)
        logits = self._decoder.logits(hidden)
        draw = batch.sampler.draw(logits if batch.row_of is None else logits[batch.row_of])
        ended = self._accept(branches, draw)
        if not ended:
            batch.advance(draw.ids)
        return ended

    def _verify(
        self, branches: list[Branch], trees: Sequence[TokenTree]
    ) -> tuple[int, list[Branch]]:
        """One token or more for every branch: rows run, and the branches that ended."""
        with self._ledger.lock:
            room = [
                self._scheduler.widen(branch, 1 + len(tree))
                for branch, tree in zip(branches, trees, strict=True)
            ]
        trees = [tree.cut(tokens - 1) for tree, tokens in zip(trees, room, strict=True)]
        step = Verification(branches, trees, self._pool.page_tokens)
        plan = self._planner.plan(step.rows)
        hidden = self._forward(step.tokens, step.positions, step.slots, plan)
        wanted = [0, *(branch.drafter.num_tops for branch in branches if branch.drafter)]
        logits = self._decoder.logits(hidden)
        draw = self._sampler_of(branches).draw_nodes(logits, step.nodes, max(wanted))
        walks = step.walks(draw)
        self._pool.move(*step.moves(walks))
        self._batch = None  # the branches have moved by different lengths
        ended = self._accept_walks(step, draw, walks)
        return len(step.tokens), ended

    def _accept_walks(
        self, step: Verification, draw: NodeDraw, walks: Sequence[Walk]
    ) -> list[Branch]:
        """Append what was accepted, up to where a branch ends, and teach the drafters."""
        ended = []
        results = []
        with self._ledger.lock:
            for number, (branch, done) in enumerate(zip(step.branches, walks, strict=True)):
                before = len(branch.tokens)
                if self._say(branch, done, step.logps(draw, number, done)):
                    ended.append(branch)
                elif branch.job.wants_deltas:
                    self._news[branch.job] = None
                said = len(branch.tokens) - before
                branch.top_logps += step.tops(draw, number, done)[:said]
                tree = step.trees[number]
                branch.computed_tokens += 1 + len(tree)
                branch.drafted += len(tree)
                branch.accepted += min(said, len(done.nodes))
                self.tokens_decoded += said
                self.tokens_drafted += len(tree)
                self.tokens_accepted += min(said, len(done.nodes))
                lesson = step.lessons(number, draw) if draw.top_ids else None
                emitted = tuple(branch.tokens[before:])
                results.append(Verified(branch, tree, done.nodes, emitted, lesson))
        self.drafting.verified(results)
        return ended

    def _say(self, branch: Branch, done: Walk, logps: Sequence[float]) -> bool:
        """Append the tokens of a walk one by one; True when the branch has ended on the way."""
        for token, logp in zip(done.emitted, logps, strict=True):
            branch.computed += 1
            if branch.accept(token, logp, self._context_tokens):
                return True
        return False

    def _decode_batch(self, branches: list[Branch]) -> DecodeBatch:
        old, size = self._batch, self._pool.page_tokens
        if old and not old.is_stale and self._batch_version == self._scheduler.version:
            return old
        sampler, device = self._sampler_of(branches), self._decoder.device
        self._batch = DecodeBatch(branches, sampler, self._planner, size, device)
        self._batch_version = self._scheduler.version
        return self._batch

    def _sampler_of(self, branches: list[Branch]) -> Sampler:
        """The sampler of these branches, the same one for as long as they are the same."""
        if self._sampler is None or self._sampled != branches:
            self._sampler, self._sampled = Sampler(branches, self._decoder.device), branches
        return self._sampler

    def _accept(self, branches: list[Branch], draw: Draw) -> list[Branch]:
        """Append what was drawn; the branches that ended. The lock keeps readers of deltas out."""
        ended = []
        with self._ledger.lock:
            for i, branch in enumerate(branches):
                branch.computed += 1
                branch.computed_tokens += 1
                if draw.tops is not None:
                    branch.top_logps.append(draw.tops[i])
                if branch.accept(draw.ids[i], draw.logps[i], self._context_tokens):
                    ended.append(branch)
                elif branch.job.wants_deltas:
                    self._news[branch.job] = None
        return ended

    def _forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        plan: Plan,
        row_of: torch.Tensor | None = None,
    ) -> torch.Tensor:
        device = self._decoder.device
        self.tokens_computed += len(slots)  # as many as an engine would run that has no twins
        self.rows_computed += len(tokens)
        ids, where = torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device)
        return self._decoder.forward(ids, where, index_of(slots, device), self._pool, plan, row_of)

    def _finish(self, branch: Branch) -> None:
        """Retire an ended branch and make its Continuation; needs the lock."""
        finish = branch.finish[0] if branch.finish else Finish.CANCELLED
        drawn = len(branch.tokens) - branch.start
        kept = drawn
        if finish is Finish.STOP_TOKEN:
            kept -= 1
        elif finish is Finish.STOP:
            kept = branch.tracker.num_tokens
        self._scheduler.retire(branch, keep=branch.start + kept)
        if branch.is_cancelled:  # nobody waits for the result
            self._ledger.unlock_path(branch.nodes[-1] if branch.nodes else None)
            branch.nodes = []
        else:
            branch.result = self._finish_branch(branch, kept)
            branch.job.finished.append(branch)
        self._settle(branch)

    def _finish_readings(self, readings: list[Reading]) -> None:
        results = finished(readings)
        with self._ledger.lock:
            for reading, result in zip(readings, results, strict=True):
                self._scheduler.retire(reading, keep=len(reading.tokens))
                leaf, reading.nodes = reading.nodes[-1], []
                if reading.claim is not None:
                    reading.claim.keep(leaf)
                else:
                    self._ledger.unlock_path(leaf)
                reading.job.results[reading.index] = ReadResult(result, reading.computed_tokens)
                self._settle(reading)

    def _settle(self, sequence: Run) -> None:
        """The worker has let go of `sequence`; needs the lock."""
        if isinstance(sequence, Branch | Reading):
            job: GenerateJob | ReadJob = sequence.job
            job.unfinished -= 1
            self._news[job] = None
            if not job.unfinished:
                self._jobs.discard(job)

    def _fail(self, error: EngineError) -> None:
        """Drop everything that runs or waits, telling each job why; needs the lock."""
        self._scheduler.copied()
        for sequence in self._scheduler.abandon():
            if isinstance(sequence, Branch | Reading):
                sequence.job.error = error
            self._settle(sequence)

    def _die(self, error: EngineClosed) -> None:
        """Tell everyone and leave the thread; pages are not counted any more."""
        self._compute.leave(self)
        with self._ledger.lock:
            self.is_closed = True
            for job in self._jobs:
                job.error, job.unfinished = error, 0
                self._news[job] = None
            self._jobs.clear()
        self._flush()

    def _flush(self) -> None:
        """Wake the jobs that have news."""
        if not self._news:
            return
        by_loop: dict[object, list[Job]] = {}
        for job in self._news:
            by_loop.setdefault(job.loop, []).append(job)
        self._news.clear()
        for jobs in by_loop.values():
            try:
                jobs[0].loop.call_soon_threadsafe(_wake, jobs)
            except RuntimeError:
                _log.warning("the event loop of %d jobs is closed", len(jobs))


def _wake(jobs: list[Job]) -> None:
    for job in jobs:
        job.wake.set()
