"""Every store keeps the laws of stores.conformance; Redis is a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from stores.base import Store
from stores.conformance import CHECKS, Advance, Check, ContractBroken
from stores.memory import MemoryStore
from stores.redis_store import RedisStore
from tests.redis_server import RedisServer, running_redis


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def fresh(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, Advance]]:
    store: Store
    if request.param == "memory":
        clock = Clock()
        store = MemoryStore(clock=clock)

        async def advance(seconds: float) -> None:
            clock.now_s += seconds
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        # Nothing is timed here, so a machine that is busy elsewhere must not look like an outage.
        store = RedisStore(server.url, prefix=uuid4().hex, timeout_s=30)

        async def advance(seconds: float) -> None:
            await asyncio.sleep(seconds)  # the server's own clock: nothing but waiting moves it

    yield store, advance
    await store.aclose()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_store_keeps_the_law(check: Check, fresh: tuple[Store, Advance]) -> None:
    store, advance = fresh
    assert isinstance(store, Store)
    await check(store, advance)


class _JoinsNames(MemoryStore):
    """Breaks isolation: joins tenant and key with a colon."""

    async def claim(
        self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None
    ) -> bool:
        return await super().claim(f"{tenant}:{key}", value, tenant="all", ttl_s=ttl_s)


class _ForgetsLifetimes(MemoryStore):
    """Breaks lifetimes: keeps everything for ever."""

    async def set(self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None) -> None:
        await super().set(key, value, tenant=tenant)


class _ClaimsInTwoSteps(MemoryStore):
    """Breaks claims: looks, lets others run, writes."""

    async def claim(
        self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None
    ) -> bool:
        if await self.get(key, tenant=tenant) is not None:
            return False
        await asyncio.sleep(0)
        await self.set(key, value, tenant=tenant, ttl_s=ttl_s)
        return True


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (_JoinsNames, "check_isolation"),
        (_ForgetsLifetimes, "check_lifetimes"),
        (_ClaimsInTwoSteps, "check_claims"),
    ],
)
async def test_checks_catch_a_broken_store(broken: type[MemoryStore], law: str) -> None:
    clock = Clock()

    async def advance(seconds: float) -> None:
        clock.now_s += seconds

    check = next(check for check in CHECKS if check.__name__ == law)
    with pytest.raises(ContractBroken):
        await check(broken(clock=clock), advance)


async def test_redis_tenants_do_not_share_a_server_prefix(redis_server: RedisServer) -> None:
    first, second = (RedisStore(redis_server.url, prefix=uuid4().hex) for _ in range(2))
    try:
        await first.set("k", b"first", tenant="t")
        assert await second.get("k", tenant="t") is None
    finally:
        await first.aclose()
        await second.aclose()


async def test_redis_leaves_nothing_without_a_lifetime(redis_server: RedisServer) -> None:
    """Streams and buckets always end; only values and blobs may be asked to stay."""
    prefix = uuid4().hex
    store = RedisStore(redis_server.url, prefix=prefix)
    try:
        await store.append_event("s", b"1", tenant="t")
        await store.bucket("b", 1, 10, tenant="t")
        await store.bucket("full", 1, 10, 0, tenant="t")
        names = [name async for name in store._redis.scan_iter(match=f"{prefix}:*")]
        lifetimes = {name.split(b":")[1]: await store._redis.pttl(name) for name in names}
    finally:
        await store.aclose()
    assert set(lifetimes) == {b"stream", b"bucket"}
    assert all(ttl_ms > 0 for ttl_ms in lifetimes.values())
