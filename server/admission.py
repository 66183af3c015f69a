"""Who may run now, who waits, and who is told to come back later.

A request takes a ticket before any header is sent; that either succeeds or is refused with the time
to come back. A ticket is good at once or waits its turn, first come first served. It must be
released, and may be released at any moment, also while it waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from server.errors import Overloaded, ShuttingDown

_MAX_RETRY_S = 60


class Ticket:
    """A place among the running or the waiting. Made by `Admission.enter`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started_s: float | None = None

    async def granted(self) -> None:
        """Return when it is this ticket's turn."""
        await asyncio.shield(self._granted)

    def release(self) -> None:
        """Give the place back; idempotent."""
        self._admission._leave(self)


class Admission:
    """Counts runs.

    Args:
        max_running: Places to run.
        max_waiting: Places to wait.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, max_running: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._clock = clock
        self._running: set[Ticket] = set()
        self._waiting: deque[Ticket] = deque()
        self._mean_run_s = 1.0
        self._is_closed = False

    @property
    def running(self) -> int:
        """Tickets whose turn it is."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._waiting)

    def enter(self) -> Ticket:
        """Take a place.

        Raises:
            Overloaded: All are taken.
            ShuttingDown: After `close`.
        """
        if self._is_closed:
            raise ShuttingDown
        if self.running >= self._max_running and self.waiting >= self._max_waiting:
            raise Overloaded(self.running, self.waiting, self._retry_after_s())
        ticket = Ticket(self)
        self._waiting.append(ticket)
        self._grant()
        return ticket

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closed = True

    def _grant(self) -> None:
        while self._waiting and self.running < self._max_running:
            ticket = self._waiting.popleft()
            ticket._started_s = self._clock()
            ticket._granted.set_result(None)
            self._running.add(ticket)

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
            assert ticket._started_s is not None
            self._mean_run_s += 0.2 * (self._clock() - ticket._started_s - self._mean_run_s)
            self._grant()
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def _retry_after_s(self) -> int:
        """About when a place to wait will be free: everyone before it must have had a turn."""
        rounds = (self.waiting + 1) / self._max_running
        return max(1, min(_MAX_RETRY_S, math.ceil(rounds * self._mean_run_s)))
