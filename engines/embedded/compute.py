"""The one thread that runs tensors.

OpenMP keeps a team of threads for every thread that ever started a parallel region, and when the
teams together outnumber the cores their members stop spinning at barriers and sleep instead: a
small operation then takes several times as long (measured on two cores: 10 us against 65 us for a
softmax of 64 x 512). So all runtimes of a process take turns on one thread, which also loads their
weights. They would compete for the same cores anyway.

It knows no models: it runs whoever has joined, a step at a time and in turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Protocol, TypeVar

T = TypeVar("T")


class Member(Protocol):
    """Somebody who computes."""

    def turn(self) -> bool:
        """Do one step; whether there was anything to do. Must not raise: all members would stop."""


class ComputeThread:
    """Runs its members' steps in turn, and calls handed to it between two steps.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._members: list[Member] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._idle_calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def join(self, member: Member) -> None:
        """Give `member` its turns from now on."""
        self.call(lambda: self._members.append(member))

    def leave(self, member: Member) -> None:
        """No further turns; returns when the one in progress has ended."""
        self.call(lambda: self._members.remove(member))

    def wake(self) -> None:
        """Some member has work."""
        self._wake.set()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the thread and wait for what it returns or raises."""
        if threading.current_thread() is self._thread:
            return function()
        return self.call_soon(function).result()

    def call_soon(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the thread before anybody's next step."""
        return self._enqueue(self._calls, function)

    def call_when_idle(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the thread once no member has anything to do."""
        return self._enqueue(self._idle_calls, function)

    def _enqueue(self, queue: deque[Callable[[], None]], function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as err:
                    future.set_exception(err)

        queue.append(run)
        self._wake.set()
        return future

    def _loop(self) -> None:
        while True:
            # Cleared before looking: work that comes while nobody looks sets it again.
            self._wake.clear()
            while self._calls:
                self._calls.popleft()()
            # A list, not any(): everyone gets a turn.
            if any([member.turn() for member in tuple(self._members)]):
                continue
            if self._idle_calls:
                self._idle_calls.popleft()()
            else:
                self._wake.wait()


@cache
def compute_thread(device: str) -> ComputeThread:
    """The thread for a kind of device: one per process, as its cores are."""
    return ComputeThread(f"bough-compute-{device}")
