from __future__ import annotations

import asyncio
import random

import pytest

from stores.base import Event
from stores.errors import StoreClosed, StoreConfigError, ValueTooLarge
from stores.memory import MemoryStore, open_store


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_bound_holds_whatever_is_written() -> None:
    store = MemoryStore(max_bytes=64 * 1024)
    rng = random.Random(1)
    for i in range(2000):
        tenant, key = f"t{rng.randrange(9)}", f"k{rng.randrange(300)}"
        size = rng.choice((0, 10, 1000, 20_000))
        match rng.randrange(3):
            case 0:
                await store.set(key, bytes(size), tenant=tenant)
            case 1:
                await store.append_event(key, bytes(size), tenant=tenant)
            case _:
                await store.put_blob(key, bytes(size), tenant=tenant)
        assert 0 < store.size_bytes <= 64 * 1024, i


async def test_the_largest_tenant_pays_for_room() -> None:
    store = MemoryStore(max_bytes=64 * 1024)
    await store.set("mine", b"kept", tenant="small")
    for i in range(500):
        await store.set(f"k{i}", bytes(1000), tenant="large")
    assert await store.get("mine", tenant="small") == b"kept"
    assert await store.get("k0", tenant="large") is None
    assert await store.get("k499", tenant="large") == bytes(1000)


async def test_what_was_used_last_is_dropped_last() -> None:
    store = MemoryStore(max_bytes=64 * 1024)
    await store.set("used", b"1", tenant="t")
    await store.set("unused", b"1", tenant="t")
    for i in range(200):
        await store.set(f"k{i}", bytes(1000), tenant="t")
        await store.get("used", tenant="t")
    assert await store.get("used", tenant="t") == b"1"
    assert await store.get("unused", tenant="t") is None


async def test_expired_entries_go_before_live_ones() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=64 * 1024, clock=clock)
    await store.set("live", b"1", tenant="t")
    for i in range(50):
        await store.set(f"k{i}", bytes(1000), tenant="t", ttl_s=1)
    clock.now_s = 2
    await store.set("new", bytes(20_000), tenant="t")
    assert await store.get("live", tenant="t") == b"1"
    assert store.size_bytes < 22_000


async def test_values_over_the_bound_are_refused() -> None:
    store = MemoryStore(max_bytes=64 * 1024, max_value_bytes=100)
    with pytest.raises(ValueTooLarge, match="101 bytes; this store takes at most 100"):
        await store.set("k", bytes(101), tenant="t")
    with pytest.raises(ValueTooLarge):
        await store.put_blob("k", bytes(101), tenant="t")
    with pytest.raises(ValueTooLarge):
        await store.append_event("k", bytes(101), tenant="t")
    with pytest.raises(ValueTooLarge):
        await store.claim("k", bytes(101), tenant="t")


async def test_a_stream_keeps_its_last_events_and_their_numbers() -> None:
    store = MemoryStore(max_stream_events=3)
    for i in range(10):
        await store.append_event("s", bytes([i]), tenant="t")
    kept = await store.read_events("s", tenant="t")
    assert kept == [Event(i, bytes([i])) for i in (7, 8, 9)]


async def test_a_stream_of_large_events_fits_the_bound() -> None:
    store = MemoryStore(max_bytes=64 * 1024)
    for _ in range(10):
        await store.append_event("s", bytes(20_000), tenant="t")
    numbers = [event.number for event in await store.read_events("s", tenant="t")]
    assert numbers == [8, 9]


async def test_flooding_with_buckets_does_not_refill_an_empty_one() -> None:
    store = MemoryStore(clock=Clock(), max_buckets=100)
    for _ in range(10):
        assert (await store.bucket("spent", 0.01, 10, tenant="t")).is_allowed
    for i in range(1000):
        await store.bucket(f"k{i}", 0.01, 10, tenant="t")
    assert not (await store.bucket("spent", 0.01, 10, tenant="t")).is_allowed


async def test_full_buckets_are_forgotten() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for i in range(50):
        await store.bucket(f"k{i}", 1, 10, 5, tenant="t")
    clock.now_s = 6
    await store.bucket("one more", 1, 10, 5, tenant="t")
    assert len(store._buckets) == 1


async def test_a_bucket_used_often_does_not_grow_its_heap() -> None:
    store = MemoryStore(clock=Clock())
    for _ in range(1000):
        await store.bucket("k", 1, 1e6, tenant="t")
    assert len(store._buckets._by_full) < 100


async def test_waiting_exactly_as_told_is_enough() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    rng = random.Random(3)
    for i in range(300):
        rate, capacity = rng.uniform(0.001, 50), rng.uniform(1, 100)
        await store.bucket(f"b{i}", rate, capacity, capacity, tenant="t")
        cost = rng.uniform(0, capacity)
        refused = await store.bucket(f"b{i}", rate, capacity, cost, tenant="t")
        assert not refused.is_allowed
        clock.now_s += refused.wait_s
        assert (await store.bucket(f"b{i}", rate, capacity, cost, tenant="t")).is_allowed


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    store = MemoryStore()
    reader = asyncio.create_task(store.read_events("s", tenant="t", wait_s=20))
    await asyncio.sleep(0)
    assert store._waiting
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert not store._waiting


async def test_closing_wakes_waiting_readers() -> None:
    store = MemoryStore()
    reader = asyncio.create_task(store.read_events("s", tenant="t", wait_s=20))
    await asyncio.sleep(0)
    await store.aclose()
    with pytest.raises(StoreClosed):
        await reader


async def test_open_store_reads_its_options() -> None:
    for url in ("", "memory://", "memory:///"):
        assert (await open_store(url).get("k", tenant="t")) is None
    store = open_store("memory://?max_value_bytes=3&max_bytes=70000&max_stream_events=1")
    with pytest.raises(ValueTooLarge):
        await store.set("k", b"four", tenant="t")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "memory://?max_bytes=1",
        "memory://?max_bytes=0",
        "memory://?max_bytes=²",
        "memory://?max_byts=1",
        "memory://?max_bytes",
    ],
)
def test_open_store_refuses_what_it_does_not_know(url: str) -> None:
    with pytest.raises(StoreConfigError):
        open_store(url)
