from __future__ import annotations

import asyncio

import pytest

from server.admission import Admission
from server.errors import Overloaded, ShuttingDown


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def is_granted(ticket: object) -> bool:
    granted = asyncio.ensure_future(ticket.granted())  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    try:
        return granted.done()
    finally:
        granted.cancel()


async def test_first_come_first_served() -> None:
    admission = Admission(1, 2)
    first, second, third = (admission.enter() for _ in range(3))
    assert (admission.running, admission.waiting) == (1, 2)
    assert await is_granted(first)
    assert not await is_granted(second)
    first.release()
    first.release()
    assert await is_granted(second)
    assert not await is_granted(third)
    second.release()
    assert await is_granted(third)
    third.release()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_gives_up_waiting_is_passed_over() -> None:
    admission = Admission(1, 5)
    first, second, third = (admission.enter() for _ in range(3))
    second.release()
    first.release()
    assert await is_granted(third)
    assert admission.waiting == 0
    third.release()


async def test_cancelling_a_wait_leaves_the_ticket_usable() -> None:
    admission = Admission(1, 1)
    first, second = admission.enter(), admission.enter()
    wait = asyncio.ensure_future(second.granted())
    await asyncio.sleep(0)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    first.release()
    assert await is_granted(second)
    second.release()


async def test_full_is_refused_with_a_time_that_follows_the_load() -> None:
    clock = Clock()
    admission = Admission(2, 1, clock)
    for _ in range(50):  # runs of 10 s
        ticket = admission.enter()
        clock.now_s += 10
        ticket.release()
    tickets = [admission.enter() for _ in range(3)]
    with pytest.raises(Overloaded) as caught:
        admission.enter()
    assert caught.value.retry_after_s == 10
    for ticket in tickets:
        ticket.release()


async def test_no_queue_at_all() -> None:
    admission = Admission(1, 0)
    ticket = admission.enter()
    with pytest.raises(Overloaded):
        admission.enter()
    ticket.release()
    admission.enter().release()


async def test_closed() -> None:
    admission = Admission(1, 1)
    admission.close()
    with pytest.raises(ShuttingDown):
        admission.enter()
