"""Copies of runs that are longer than one stream of a store."""

from __future__ import annotations

import asyncio

import pytest

from search.run import Run
from search.tree import Resampled, SearchTree, TreeEvent
from server import record
from server.errors import RunNotFound
from server.metrics import Metrics
from server.record import LiveRuns, following, key_of, stored
from stores.base import MAX_STREAM_EVENTS
from stores.memory import MemoryStore
from tests.search_harness import request
from tests.toy_engine import ToyEngine


def long_run(num_events: int) -> Run:
    """A run whose tree says so much; the last event is its end."""
    run = Run(request("single"), engine=ToyEngine())
    for copies in range(num_events - 2):
        run.tree.record(Resampled(0, copies))
    run.tree.close("done")
    return run


async def copied(store: MemoryStore, run: Run) -> None:
    runs = LiveRuns(store, Metrics())
    runs.begin(run)
    await runs.drain()


async def test_a_run_may_have_more_events_than_a_stream() -> None:
    store, run = MemoryStore(), long_run(MAX_STREAM_EVENTS + 1500)
    await copied(store, run)
    events = await stored(store, "test", "")
    assert [event.number for event in events] == list(range(MAX_STREAM_EVENTS + 1500))
    assert SearchTree.replay(events) == run.tree.snapshot()


@pytest.mark.parametrize("num_events", [2, 4, 5, 8, 9])
async def test_following_goes_from_stream_to_stream(
    monkeypatch: pytest.MonkeyPatch, num_events: int
) -> None:
    monkeypatch.setattr(record, "SEGMENT", 4)
    store, run = MemoryStore(), long_run(num_events)
    seen: list[TreeEvent] = []

    async def follow() -> None:
        async for event in following(store, "test", "", -1, patience_s=60):
            seen.append(event)

    async with asyncio.timeout(20):
        await asyncio.gather(follow(), copied(store, run))
    assert seen == list(run.tree.events()) == await stored(store, "test", "")


async def test_of_a_run_beyond_the_bound_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SEGMENT", 4)
    monkeypatch.setattr(record, "MAX_EVENTS", 12)
    store = MemoryStore()
    await copied(store, long_run(30))
    events = await stored(store, "test", "")
    assert [event.number for event in events] == [*range(12), 29]
    assert SearchTree.replay(events)["stop_reason"] == "done"
    assert [event async for event in following(store, "test", "", 11, 60)] == events[-1:]


async def test_a_run_whose_beginning_was_dropped_is_gone() -> None:
    store = MemoryStore(max_stream_events=3)
    await copied(store, long_run(6))
    with pytest.raises(RunNotFound):
        await stored(store, "test", "")
    assert await store.read_events(key_of("test", 0), tenant="")
