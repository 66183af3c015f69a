"""Redis goes away in the middle: every call ends as StoreUnavailable, none hangs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from stores.errors import StoreClosed, StoreUnavailable
from stores.redis_store import RedisStore
from tests.redis_server import free_port, running_redis

CALLS: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "get": lambda store: store.get("k", tenant="t"),
    "set": lambda store: store.set("k", b"v", tenant="t"),
    "claim": lambda store: store.claim("k", b"v", tenant="t"),
    "expire": lambda store: store.expire("k", 1, tenant="t"),
    "remove": lambda store: store.expire("k", 0, tenant="t"),
    "bucket": lambda store: store.bucket("k", 1, 1, tenant="t"),
    "append_event": lambda store: store.append_event("k", b"v", tenant="t"),
    "read_events": lambda store: store.read_events("k", tenant="t"),
    "get_blob": lambda store: store.get_blob("k", tenant="t"),
    "put_blob": lambda store: store.put_blob("k", b"v", tenant="t"),
    "ping": lambda store: store.ping(),
}

# Far above what any of these calls takes: it only turns a hang into a failure.
HANG_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[tuple[RedisStore, Clock]]:
    clock = Clock()
    store = RedisStore(url, clock=clock, timeout_s=options.get("timeout_s", 10.0))
    try:
        yield store, clock
    finally:
        await store.aclose()


async def test_every_call_fails_typed_after_redis_is_killed() -> None:
    with running_redis() as server:
        async with opened(server.url) as (store, clock):
            await store.set("k", b"v", tenant="t")
            server.kill()
            for name, call in CALLS.items():
                clock.now_s += 10  # past the cooldown, so that each call really tries
                async with asyncio.timeout(HANG_S):
                    with pytest.raises(StoreUnavailable, match="is gone") as failed:
                        await call(store)
                assert not isinstance(failed.value, StoreClosed), name


async def test_calls_in_flight_fail_when_redis_is_killed() -> None:
    with running_redis() as server:
        async with opened(server.url) as (store, _):
            await store.ping()
            reader = asyncio.create_task(store.read_events("s", tenant="t", wait_s=20))
            while not (await store._redis.info("clients"))["blocked_clients"]:  # noqa: ASYNC110 - only the server knows
                await asyncio.sleep(0)
            writers = [
                asyncio.create_task(store.set(f"k{i}", bytes(100_000), tenant="t"))
                for i in range(200)
            ]
            await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
            server.kill()
            async with asyncio.timeout(HANG_S):
                ended = await asyncio.gather(reader, *writers, return_exceptions=True)
    assert isinstance(ended[0], StoreUnavailable)
    assert all(end is None or isinstance(end, StoreUnavailable) for end in ended[1:])


async def test_after_a_failure_calls_fail_without_trying_until_the_cooldown_ends() -> None:
    port = free_port()
    async with opened(f"redis://127.0.0.1:{port}") as (store, clock):
        with pytest.raises(StoreUnavailable, match="is gone"):
            await store.ping()
        with running_redis(port):
            with pytest.raises(StoreUnavailable, match="not tried again"):
                await store.ping()
            clock.now_s += 1
            await store.ping()
            await store.set("k", b"v", tenant="t")
            assert await store.get("k", tenant="t") == b"v"


async def test_a_restarted_redis_is_used_again() -> None:
    with running_redis() as server:
        async with opened(server.url) as (store, clock):
            await store.set("k", b"v", tenant="t")
            server.kill()
            with pytest.raises(StoreUnavailable):
                await store.get("k", tenant="t")
            with running_redis(server.port):
                clock.now_s += 1
                assert await store.get("k", tenant="t") is None


async def test_a_server_that_accepts_and_says_nothing_times_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        async with opened(url, timeout_s=0.05) as (store, _):
            async with asyncio.timeout(HANG_S):
                with pytest.raises(StoreUnavailable, match="is gone"):
                    await store.get("k", tenant="t")


async def test_a_refusal_of_redis_is_typed_and_does_not_stop_other_calls() -> None:
    with running_redis() as server:
        async with opened(server.url) as (store, _):
            await store._redis.set(store._name("stream", "t", "k"), b"not a stream")
            with pytest.raises(StoreUnavailable, match="refused: WRONGTYPE"):
                await store.append_event("k", b"v", tenant="t")
            await store.ping()


async def test_cancelled_calls_leave_the_store_usable() -> None:
    with running_redis() as server:
        async with opened(server.url) as (store, _):
            for rounds in range(20):
                call = asyncio.create_task(store.append_event("s", b"v", tenant="t"))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await store.set("k", b"v", tenant="t")
            assert await store.get("k", tenant="t") == b"v"


async def test_more_waiting_readers_than_connections_still_all_get_the_event() -> None:
    with running_redis() as server:
        store = RedisStore(server.url, max_connections=2, timeout_s=10)

        async def follow() -> bytes:
            while True:
                for event in await store.read_events("s", tenant="t", wait_s=1):
                    return event.data

        try:
            readers = [asyncio.create_task(follow()) for _ in range(6)]
            while not store._wait_slots.locked():  # noqa: ASYNC110 - a semaphore tells nobody
                await asyncio.sleep(0)
            await store.append_event("s", b"now", tenant="t")
            assert await asyncio.gather(*readers) == [b"now"] * 6
        finally:
            await store.aclose()
