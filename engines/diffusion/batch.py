"""Rows of many callers through one model, a forward at a time.

Every row stands at its own step of its own kernel, which is no matter to the model. A forward takes
the rows that waited longest, of similar lengths, up to a number of tokens; shorter rows are padded.
The batcher is a member of the thread that computes: callers hand in jobs from their event loops and
are told there.

It knows no prompts, no trees and no budgets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from engines.diffusion.base import Denoised, DenoiseJob
from engines.diffusion.drawing import MAX_NUMBERS, Ask, draw
from engines.diffusion.kernels import Need, Walk
from engines.diffusion.network import Network
from engines.embedded.compute import ComputeThread
from engines.errors import EngineClosed, EngineError

_log = logging.getLogger("bough.diffusion")

_LEAST_FULL: Final = 0.75
"""Rows shorter than this share of the longest in a forward wait for one of their own length."""


class Call:
    """The jobs of one caller, and whom to tell."""

    def __init__(self, jobs: Sequence[DenoiseJob], mask_id: int) -> None:
        self.walks = [Walk(job, mask_id) for job in jobs]
        self.is_cancelled = False
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Denoised]] = self.loop.create_future()
        self._left = len(jobs)

    def finished_one(self) -> bool:
        """One walk is done; whether it was the last."""
        self._left -= 1
        return self._left == 0

    def succeed(self) -> None:
        """Tell the caller; from any thread."""
        results = [walk.result() for walk in self.walks]
        self._tell(lambda: self.future.set_result(results))

    def fail(self, error: EngineError) -> None:
        """Tell the caller; from any thread."""
        self._tell(lambda: self.future.set_exception(error))

    def _tell(self, what: Callable[[], None]) -> None:
        def tell() -> None:
            if not self.future.done():
                what()

        try:
            self.loop.call_soon_threadsafe(tell)
        except RuntimeError:
            _log.warning("the event loop of a denoising call is closed")


class Batcher:
    """Takes calls and runs their rows in turn.

    Args:
        network: The model.
        mask_id: Its mask.
        max_tokens: The most tokens of a forward, padding included; one row always fits.
        compute: The thread that it runs on.
    """

    def __init__(
        self, network: Network, mask_id: int, max_tokens: int, compute: ComputeThread
    ) -> None:
        self._network = network
        self._mask_id = mask_id
        self._max_tokens = max_tokens
        self._compute = compute
        self._lock = threading.Lock()
        self._inbox: list[Call] = []
        self._rows: deque[tuple[Call, Walk]] = deque()  # the compute thread's alone
        self.is_closed = False
        self.forwards = 0
        self.evaluations = 0
        self.tokens = 0
        compute.join(self)

    async def run(self, jobs: Sequence[DenoiseJob]) -> list[Denoised]:
        """All jobs done, in order; cancelling drops their rows.

        Raises:
            EngineClosed: The batcher was closed.
            EngineError: The model failed on a batch that these rows were in.
        """
        call = Call(jobs, self._mask_id)
        with self._lock:
            if self.is_closed:
                raise EngineClosed("the denoiser was closed")
            self._inbox.append(call)
        self._compute.wake()
        try:
            return await call.future
        finally:
            call.is_cancelled = True  # of no effect on what is done

    @property
    def num_rows(self) -> int:
        """Rows on their way."""
        return len(self._rows)

    def close(self) -> None:
        """Fail what runs; further calls raise EngineClosed. Idempotent."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
        self._compute.leave(self)
        self._compute.call(lambda: self._fail(EngineClosed("the denoiser was closed")))

    def turn(self) -> bool:
        """One forward; False when nothing is to be done."""
        with self._lock:
            calls, self._inbox = self._inbox, []
        for call in calls:
            self._rows.extend((call, walk) for walk in call.walks)
        chosen = self._chosen()
        if chosen:
            try:
                self._forward(chosen)
            except Exception as err:
                _log.exception("a forward of the denoiser failed")
                failure = EngineError(f"the denoiser failed on this batch: {err}")
                for call in dict.fromkeys(call for call, _, _ in chosen):
                    call.fail(failure)
                    call.is_cancelled = True
        return bool(chosen)

    def _chosen(self) -> list[tuple[Call, Walk, Need]]:
        """The next forward's rows; what is done or cancelled leaves on the way."""
        chosen: list[tuple[Call, Walk, Need]] = []
        waiting: list[tuple[Call, Walk]] = []
        longest = shortest = 0
        while self._rows:
            call, walk = self._rows.popleft()
            if call.is_cancelled:
                continue
            need = walk.next()
            if need is None:
                if call.finished_one():
                    call.succeed()
                continue
            size = len(walk.tokens)
            longer = max(longest, size)
            shorter = min(shortest, size) if chosen else size
            fits = longer * (len(chosen) + 1) <= self._max_tokens or not chosen
            if fits and shorter >= _LEAST_FULL * longer:
                chosen.append((call, walk, need))
                longest, shortest = longer, shorter
            else:
                waiting.append((call, walk))
        # Those that run go behind those that wait.
        self._rows.extend(waiting)
        self._rows.extend((call, walk) for call, walk, _ in chosen)
        return chosen

    def _forward(self, chosen: Sequence[tuple[Call, Walk, Need]]) -> None:
        walks = [walk for _, walk, _ in chosen]
        needs = [need for _, _, need in chosen]
        lengths = [len(walk.tokens) for walk in walks]
        width, device = max(lengths), self._network.device
        ids = np.full((len(walks), width), self._mask_id, dtype=np.int64)
        for row, walk in zip(ids, walks, strict=True):
            row[: len(walk.tokens)] = walk.tokens
        rows = np.repeat(np.arange(len(walks)), [len(need.positions) for need in needs])
        spots = np.concatenate([need.positions for need in needs])
        logits = self._network.logits(
            torch.from_numpy(ids).to(device),
            lengths,
            torch.from_numpy(rows).to(device),
            torch.from_numpy(spots).to(device),
        )
        self.forwards += 1
        self.evaluations += len(walks)
        self.tokens += sum(lengths)
        self._reveal(logits, walks, needs)

    def _reveal(self, logits: torch.Tensor, walks: Sequence[Walk], needs: Sequence[Need]) -> None:
        """Draw and reveal, as many rows at a time as `MAX_NUMBERS` allows."""
        asks: list[Ask] = []
        first = start = 0
        for at, (walk, need) in enumerate(zip(walks, needs, strict=True)):
            asks.append(Ask(walk.job, walk.uniforms(), need.is_fill))
            spots = sum(len(ask.uniforms) for ask in asks)
            is_last = at + 1 == len(walks)
            if is_last or (spots + len(needs[at + 1].positions)) * logits.shape[1] > MAX_NUMBERS:
                answers = draw(logits[start : start + spots], asks, self._mask_id)
                for one, answer in zip(walks[first : at + 1], answers, strict=True):
                    one.reveal(answer.ids, answer.logps, answer.confidence)
                asks, first, start = [], at + 1, start + spots

    def _fail(self, error: EngineError) -> None:
        """Tell everybody; on the compute thread."""
        with self._lock:
            calls, self._inbox = self._inbox, []
        for call in dict.fromkeys([*(call for call, _ in self._rows), *calls]):
            call.fail(error)
        self._rows.clear()
