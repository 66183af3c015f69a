"""The laws of `stores.base.Store`, as checks that any implementation can run.

Each check takes a fresh, empty store and a way to let time pass for it, and raises `ContractBroken`
with what it saw. Checks use their own tenants and keys, so a shared server may hold other data.

What is not checked here: eviction and size bounds, which each store documents for itself, and
behaviour under failure, which needs a way to make that very store fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from stores.base import MAX_KEY_CHARS, Blob, Conflict, Event, Store
from stores.errors import StoreClosed, StoreInputError

Advance: TypeAlias = Callable[[float], Awaitable[None]]
"""Returns when at least so many seconds have passed on the store's clock."""
Check: TypeAlias = Callable[[Store, Advance], Awaitable[None]]

A_MOMENT_S: Final = 0.05

AWKWARD_NAMES: Final = (
    "a",
    "a:b",
    ":",
    "a:",
    "{a}",
    "}{",
    "%7Ba%7D",
    "a\x00b",
    "a b\r\n",
    "*",
    "ключ-🌳",
    "\ud800",
    "a/b",
    "\\",
    "A",
)
"""Names that break a store which joins them with a separator, a pattern or a case-folding key."""


class ContractBroken(AssertionError):
    """A store does not keep one of the laws."""


def _same(seen: object, expected: object, what: str) -> None:
    if seen != expected:
        raise ContractBroken(f"{what}: expected {expected!r}, saw {seen!r}")


async def _refused(call: Awaitable[object], what: str) -> None:
    try:
        await call
    except StoreInputError:
        return
    raise ContractBroken(f"{what} was accepted")


async def check_values(store: Store, advance: Advance) -> None:
    """A value reads back until it is replaced; bytes are kept as they are."""
    _same(await store.get("k", tenant="values"), None, "a value never written")
    for value in (b"", b"\x00\xff\r\n", b"x" * 100_000):
        await store.set("k", value, tenant="values")
        _same(await store.get("k", tenant="values"), value, "a written value")


async def check_lifetimes(store: Store, advance: Advance) -> None:
    """A lifetime ends; a later write without one lifts it; expire changes it."""
    await store.set("short", b"1", tenant="life", ttl_s=A_MOMENT_S)
    await store.set("long", b"2", tenant="life", ttl_s=3600)
    await store.set("lifted", b"3", tenant="life", ttl_s=A_MOMENT_S)
    await store.set("lifted", b"4", tenant="life")
    await store.set("cut", b"5", tenant="life", ttl_s=3600)
    _same(await store.expire("cut", A_MOMENT_S, tenant="life"), True, "expire of a value")
    await advance(2 * A_MOMENT_S)
    _same(await store.get("short", tenant="life"), None, "a value after its lifetime")
    _same(await store.get("cut", tenant="life"), None, "a value after its shortened lifetime")
    _same(await store.get("long", tenant="life"), b"2", "a value within its lifetime")
    _same(await store.get("lifted", tenant="life"), b"4", "a value whose lifetime was lifted")
    _same(await store.expire("short", 9, tenant="life"), False, "expire of an expired value")
    _same(await store.expire("long", 0, tenant="life"), True, "expire with 0")
    _same(await store.get("long", tenant="life"), None, "a removed value")


async def check_claims(store: Store, advance: Advance) -> None:
    """Of many claims at once one wins, the value is the winner's, and it can be had again later."""
    won = await asyncio.gather(*(store.claim("c", bytes([i]), tenant="claims") for i in range(20)))
    _same(sum(won), 1, "claims won of 20 at once")
    value = await store.get("c", tenant="claims")
    _same(value, bytes([won.index(True)]), "the value of a claim")
    await store.expire("c", A_MOMENT_S, tenant="claims")
    await advance(2 * A_MOMENT_S)
    _same(await store.claim("c", b"again", tenant="claims", ttl_s=9), True, "a claim after expiry")
    _same(await store.claim("c", b"late", tenant="claims"), False, "a claim on what is claimed")


async def check_buckets(store: Store, advance: Advance) -> None:
    """A bucket admits its capacity, refuses the rest for the time it names, and refills."""
    grants = await asyncio.gather(
        *(store.bucket("b", 1e-6, 20, tenant="buckets") for _ in range(60))
    )
    _same(sum(grant.is_allowed for grant in grants), 20, "calls admitted of 60 at capacity 20")
    refused = [grant.wait_s for grant in grants if not grant.is_allowed]
    if not all(0 < wait_s <= 1.1e6 for wait_s in refused):
        raise ContractBroken(f"waits of refused calls at one per 1e6 s: {refused}")
    _same((await store.bucket("b", 1e-6, 20, -5, tenant="buckets")).is_allowed, True, "a refund")
    _same((await store.bucket("b", 1e-6, 20, 5, tenant="buckets")).is_allowed, True, "the refund")
    _same((await store.bucket("b", 1e-6, 20, 1, tenant="buckets")).is_allowed, False, "beyond it")
    over = await store.bucket("over", 1, 2, 3, tenant="buckets")
    _same((over.is_allowed, over.wait_s), (False, float("inf")), "a cost above the capacity")
    _same(over.remaining, 2.0, "tokens left after a refused cost")
    full = await store.bucket("over", 1, 2, -100, tenant="buckets")
    _same(full.remaining, 2.0, "tokens after a refund beyond the capacity")
    fast = 1 / A_MOMENT_S
    _same((await store.bucket("r", fast, 1, tenant="buckets")).is_allowed, True, "a full bucket")
    await advance(2 * A_MOMENT_S)
    _same((await store.bucket("r", fast, 1, tenant="buckets")).is_allowed, True, "a refilled one")


async def check_events(store: Store, advance: Advance) -> None:
    """Events are numbered from 0, read in order from anywhere, and repeats add nothing."""
    read = store.read_events
    _same(await read("s", tenant="events"), [], "a stream never written")
    numbers = [await store.append_event("s", bytes([i]), tenant="events") for i in range(5)]
    _same(numbers, list(range(5)), "numbers given")
    everything = [Event(i, bytes([i])) for i in range(5)]
    _same(await read("s", tenant="events"), everything, "all events")
    _same(await read("s", 2, tenant="events"), everything[3:], "events after 2")
    _same(await read("s", 0, tenant="events", limit=2), everything[1:3], "two events after 0")
    _same(await read("s", 4, tenant="events"), [], "events after the last")
    _same(await read("s", 10**30, tenant="events"), [], "events after a number out of reach")
    again = await store.append_event("s", b"repeat", tenant="events", number=4)
    _same((again, await read("s", 3, tenant="events")), (4, everything[4:]), "a repeated number")
    await store.append_event("s", b"gap", tenant="events", number=9)
    _same(await store.append_event("s", b"next", tenant="events"), 10, "the number after a gap")
    after_gap = [Event(9, b"gap"), Event(10, b"next")]
    _same(await read("s", 4, tenant="events"), after_gap, "events after a gap")


async def check_concurrent_appends(store: Store, advance: Advance) -> None:
    """Appends at once each get a number of their own, and each number holds its own data."""
    numbers = await asyncio.gather(
        *(store.append_event("c", bytes([i]), tenant="events") for i in range(30))
    )
    _same(sorted(numbers), list(range(30)), "numbers of 30 appends at once")
    by_number = {
        event.number: event.data for event in await store.read_events("c", tenant="events")
    }
    _same(by_number, {n: bytes([i]) for i, n in enumerate(numbers)}, "data by number")


async def check_stream_lifetime(store: Store, advance: Advance) -> None:
    """A stream goes when its lifetime ends; every append renews it."""
    await store.append_event("old", b"1", tenant="events", ttl_s=A_MOMENT_S)
    await store.append_event("kept", b"1", tenant="events", ttl_s=A_MOMENT_S)
    await store.append_event("kept", b"2", tenant="events", ttl_s=3600)
    await advance(2 * A_MOMENT_S)
    _same(await store.read_events("old", tenant="events"), [], "a stream after its lifetime")
    _same(len(await store.read_events("kept", tenant="events")), 2, "events of a renewed stream")
    _same(
        await store.append_event("old", b"2", tenant="events"), 0, "the first number of a new one"
    )


async def check_waiting(store: Store, advance: Advance) -> None:
    """A waiting reader gets what comes, whoever else waits; waiting for nothing ends empty."""
    readers = [
        asyncio.create_task(store.read_events("w", tenant=tenant, wait_s=10))
        for tenant in ("waits", "waits", "others")
    ]
    try:
        await asyncio.sleep(0)
        await store.append_event("w", b"now", tenant="waits")
        seen = await asyncio.gather(*readers[:2])
        _same(seen, [[Event(0, b"now")]] * 2, "events of two waiting readers")
        _same(readers[2].done(), False, "another tenant's reader being done")
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    _same(await store.read_events("w", 0, tenant="waits", wait_s=0.01), [], "a wait in vain")


async def check_blobs(store: Store, advance: Advance) -> None:
    """A blob is written over the version expected and nothing else; versions never come twice."""
    _same(await store.get_blob("b", tenant="blobs"), None, "a blob never written")
    missing = await store.put_blob("b", b"x", tenant="blobs", if_version=7)
    _same(missing, Conflict(0), "a write over a version that is not there")
    first = await store.put_blob("b", b"\x00one", tenant="blobs", if_version=0)
    if not isinstance(first, int) or first < 1:
        raise ContractBroken(f"the first version is {first!r}, not a number above 0")
    _same(await store.get_blob("b", tenant="blobs"), Blob(b"\x00one", first), "a written blob")
    _same(await store.put_blob("b", b"x", tenant="blobs", if_version=0), Conflict(first), "a retry")
    writes = await asyncio.gather(
        *(store.put_blob("b", bytes([i]), tenant="blobs", if_version=first) for i in range(10))
    )
    versions = [version for version in writes if isinstance(version, int)]
    _same(len(versions), 1, "writes won of 10 over one version")
    winner = bytes([writes.index(versions[0])])
    _same(await store.get_blob("b", tenant="blobs"), Blob(winner, versions[0]), "the winner's blob")
    last = await store.put_blob("b", b"any", tenant="blobs", ttl_s=A_MOMENT_S)
    await advance(2 * A_MOMENT_S)
    _same(await store.get_blob("b", tenant="blobs"), None, "a blob after its lifetime")
    anew = await store.put_blob("b", b"new", tenant="blobs", if_version=0)
    if anew in (first, versions[0], last) or not isinstance(anew, int):
        raise ContractBroken(f"version {anew!r} after {first!r}, {versions[0]!r}, {last!r}")


async def check_isolation(store: Store, advance: Advance) -> None:
    """No tenant and key, however spelt, reach what another tenant or another kind holds."""
    pairs = [(tenant, key) for tenant in ("", *AWKWARD_NAMES) for key in AWKWARD_NAMES]
    for number, (tenant, key) in enumerate(pairs):
        mark = str(number).encode()
        _same(await store.claim(key, mark, tenant=tenant), True, f"the claim of {tenant, key}")
        _same(await store.append_event(key, mark, tenant=tenant), 0, f"the event of {tenant, key}")
        written = await store.put_blob(key, mark, tenant=tenant, if_version=0)
        _same(isinstance(written, int), True, f"the blob of {tenant, key} being new")
        grant = await store.bucket(key, 1e-6, 1, tenant=tenant)
        _same(grant.is_allowed, True, f"the bucket of {tenant, key} being full")
    for number, (tenant, key) in enumerate(pairs):
        mark = str(number).encode()
        blob = await store.get_blob(key, tenant=tenant)
        seen = (
            await store.get(key, tenant=tenant),
            await store.read_events(key, tenant=tenant),
            blob and blob.data,
        )
        _same(seen, (mark, [Event(0, mark)], mark), f"what {tenant, key} holds")


async def check_refusals(store: Store, advance: Advance) -> None:
    """Arguments outside the contract are refused as the caller's, not as an outage."""
    long = "k" * (MAX_KEY_CHARS + 1)
    await _refused(store.get("", tenant="t"), "an empty key")
    await _refused(store.get(long, tenant="t"), "a key too long")
    await _refused(store.get("k", tenant=long), "a tenant too long")
    await _refused(store.expire("k", -1, tenant="t"), "a negative expiry")
    for ttl_s in (0.0, -1.0, float("nan"), float("inf")):
        await _refused(store.set("k", b"", tenant="t", ttl_s=ttl_s), f"lifetime {ttl_s}")
        await _refused(store.claim("k", b"", tenant="t", ttl_s=ttl_s), f"lifetime {ttl_s}")
        await _refused(store.append_event("k", b"", tenant="t", ttl_s=ttl_s), f"lifetime {ttl_s}")
        await _refused(store.put_blob("k", b"", tenant="t", ttl_s=ttl_s), f"lifetime {ttl_s}")
    for rate, capacity, cost in ((0, 1, 1), (1, 0, 1), (1, float("nan"), 1), (1, 1, float("inf"))):
        call = store.bucket("k", rate, capacity, cost, tenant="t")
        await _refused(call, f"a bucket of {rate, capacity, cost}")
    await _refused(store.append_event("k", b"", tenant="t", number=-1), "event number -1")
    await _refused(store.append_event("k", b"", tenant="t", number=2**60), "event number 2^60")
    await _refused(store.read_events("k", -2, tenant="t"), "reading after -2")
    await _refused(store.read_events("k", tenant="t", limit=0), "reading 0 events")
    await _refused(store.read_events("k", tenant="t", wait_s=-1), "waiting -1 s")


async def check_closing(store: Store, advance: Advance) -> None:
    """It answers until it is closed, closing twice is fine, and then it says so."""
    await store.ping()
    await store.aclose()
    await store.aclose()
    calls: list[Awaitable[object]] = [
        store.ping(),
        store.get("k", tenant="t"),
        store.set("k", b"", tenant="t"),
        store.append_event("k", b"", tenant="t"),
        store.bucket("k", 1, 1, tenant="t"),
    ]
    for call in calls:
        try:
            await call
        except StoreClosed:
            continue
        raise ContractBroken("a closed store answered")


CHECKS: Final[tuple[Check, ...]] = (
    check_values,
    check_lifetimes,
    check_claims,
    check_buckets,
    check_events,
    check_concurrent_appends,
    check_stream_lifetime,
    check_waiting,
    check_blobs,
    check_isolation,
    check_refusals,
    check_closing,
)
