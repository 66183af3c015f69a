"""The default store: one process, bounded memory, an injected clock.

Values, streams and blobs of a tenant share one least-recently-used list. When the bound is reached
the tenant that holds the most gives up what it used longest ago, so nobody can push out another
tenant's data by writing much.

Nothing here awaits except a waiting reader, so every method is atomic in its event loop. The store
shares nothing between processes and is not safe to use from several threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, TypeAlias

from stores.base import (
    EVENTS_TTL_S,
    MAX_STREAM_EVENTS,
    MAX_VALUE_BYTES,
    MAX_WAIT_S,
    Blob,
    Conflict,
    Event,
    Grant,
    check_bucket,
    check_lifetime,
    check_name,
    check_number,
    check_page,
    check_size,
)
from stores.buckets import Buckets
from stores.errors import StoreClosed, StoreConfigError

Kind: TypeAlias = Literal["value", "stream", "blob"]
Slot: TypeAlias = tuple[Kind, str]

_OVERHEAD_BYTES = 200  # about what the objects of an entry or event take: empty ones count too
_MIN_BYTES = 64 * 1024


@dataclass
class _Entry:
    data: bytes = b""
    version: int = 0
    events: deque[Event] = field(default_factory=deque)
    events_bytes: int = 0
    expires_at: float | None = None
    charged_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        return _OVERHEAD_BYTES + len(self.data) + self.events_bytes

    def push(self, event: Event) -> None:
        self.events.append(event)
        self.events_bytes += len(event.data) + _OVERHEAD_BYTES

    def shift(self) -> None:
        self.events_bytes -= len(self.events.popleft().data) + _OVERHEAD_BYTES


@dataclass
class _Share:
    """What one tenant holds, least recently used first."""

    entries: OrderedDict[Slot, _Entry] = field(default_factory=OrderedDict)
    size_bytes: int = 0


class MemoryStore:
    """A `Store` in this process's memory.

    Args:
        clock: Seconds that never go back.
        max_bytes: Data of all tenants together, with a rough charge for each entry.
        max_value_bytes: The largest value, event or blob.
        max_stream_events: Events kept of one stream.
        max_buckets: Token buckets that are not full.

    Raises:
        StoreConfigError: `max_bytes` leaves no room for one entry.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = 256 * 1024 * 1024,
        max_value_bytes: int = MAX_VALUE_BYTES,
        max_stream_events: int = MAX_STREAM_EVENTS,
        max_buckets: int = 100_000,
    ) -> None:
        if max_bytes < _MIN_BYTES:
            raise StoreConfigError(f"max_bytes is {max_bytes}; it must be at least {_MIN_BYTES}")
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_value_bytes = min(max_value_bytes, max_bytes // 2)
        self._max_stream_events = max_stream_events
        self._shares: dict[str, _Share] = {}
        self._size_bytes = 0
        self._versions = count(1)
        self._buckets = Buckets(max_buckets)
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        """What all entries are charged; never above the bound."""
        return self._size_bytes

    async def get(self, key: str, *, tenant: str) -> bytes | None:
        """See `Store.get`."""
        entry = self._find("value", key, tenant)
        return None if entry is None else entry.data

    async def set(self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None) -> None:
        """See `Store.set`."""
        self._check(value, ttl_s)
        self._put("value", key, tenant, _Entry(bytes(value)), ttl_s)

    async def claim(
        self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None
    ) -> bool:
        """See `Store.claim`."""
        self._check(value, ttl_s)
        if self._find("value", key, tenant) is not None:
            return False
        self._put("value", key, tenant, _Entry(bytes(value)), ttl_s)
        return True

    async def expire(self, key: str, ttl_s: float, *, tenant: str) -> bool:
        """See `Store.expire`."""
        if ttl_s != 0:
            check_lifetime(ttl_s)
        entry = self._find("value", key, tenant)
        if entry is None:
            return False
        if ttl_s == 0:
            self._drop(tenant, ("value", key))
        else:
            entry.expires_at = self._clock() + ttl_s
        return True

    async def bucket(
        self, key: str, rate: float, capacity: float, cost: float = 1.0, *, tenant: str
    ) -> Grant:
        """See `Store.bucket`."""
        self._check_open()
        check_name(tenant, key)
        check_bucket(rate, capacity, cost)
        return self._buckets.take((tenant, key), rate, capacity, cost, self._clock())

    async def append_event(
        self,
        key: str,
        data: bytes,
        *,
        tenant: str,
        number: int | None = None,
        ttl_s: float = EVENTS_TTL_S,
    ) -> int:
        """See `Store.append_event`."""
        self._check(data, ttl_s)
        check_number(number)
        entry = self._find("stream", key, tenant) or _Entry()
        last = entry.events[-1].number if entry.events else -1
        if number is None:
            number = last + 1
        if number > last:
            entry.push(Event(number, bytes(data)))
            while len(entry.events) > self._max_stream_events or (
                entry.size_bytes > self._max_bytes * 3 // 4
            ):
                entry.shift()
        self._put("stream", key, tenant, entry, ttl_s)
        for waker in self._waiting.get((tenant, key), ()):
            waker.set()
        return number

    async def read_events(
        self, key: str, after: int = -1, *, tenant: str, limit: int = 1000, wait_s: float = 0.0
    ) -> list[Event]:
        """See `Store.read_events`."""
        check_page(after, limit, wait_s)
        found = self._events_after(key, after, tenant, limit)
        if found or wait_s == 0:
            return found
        await self._wait(key, tenant, min(wait_s, MAX_WAIT_S))
        return self._events_after(key, after, tenant, limit)

    async def get_blob(self, key: str, *, tenant: str) -> Blob | None:
        """See `Store.get_blob`."""
        entry = self._find("blob", key, tenant)
        return None if entry is None else Blob(entry.data, entry.version)

    async def put_blob(
        self,
        key: str,
        data: bytes,
        *,
        tenant: str,
        if_version: int | None = None,
        ttl_s: float | None = None,
    ) -> int | Conflict:
        """See `Store.put_blob`."""
        self._check(data, ttl_s)
        entry = self._find("blob", key, tenant)
        current = 0 if entry is None else entry.version
        if if_version is not None and if_version != current:
            return Conflict(current)
        version = next(self._versions)
        self._put("blob", key, tenant, _Entry(bytes(data), version), ttl_s)
        return version

    async def ping(self) -> None:
        """See `Store.ping`."""
        self._check_open()

    async def aclose(self) -> None:
        """See `Store.aclose`; readers that wait are woken and told."""
        self._is_closed = True
        self._shares.clear()
        self._size_bytes = 0
        self._buckets.clear()
        for wakers in self._waiting.values():
            for waker in wakers:
                waker.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreClosed("the memory store is closed")

    def _check(self, value: bytes, ttl_s: float | None) -> None:
        check_size(value, self._max_value_bytes)
        check_lifetime(ttl_s)

    def _find(self, kind: Kind, key: str, tenant: str) -> _Entry | None:
        """The live entry, marked as just used."""
        self._check_open()
        check_name(tenant, key)
        share = self._shares.get(tenant)
        entry = None if share is None else share.entries.get((kind, key))
        if share is None or entry is None:
            return None
        if entry.expires_at is not None and entry.expires_at <= self._clock():
            self._drop(tenant, (kind, key))
            return None
        share.entries.move_to_end((kind, key))
        return entry

    def _put(self, kind: Kind, key: str, tenant: str, entry: _Entry, ttl_s: float | None) -> None:
        self._check_open()
        check_name(tenant, key)
        self._drop(tenant, (kind, key))
        entry.expires_at = None if ttl_s is None else self._clock() + ttl_s
        entry.charged_bytes = entry.size_bytes + len(tenant) + len(key)
        if self._size_bytes + entry.charged_bytes > self._max_bytes:
            self._make_room(entry.charged_bytes)
        share = self._shares.setdefault(tenant, _Share())
        share.entries[(kind, key)] = entry
        share.size_bytes += entry.charged_bytes
        self._size_bytes += entry.charged_bytes

    def _drop(self, tenant: str, slot: Slot) -> None:
        share = self._shares.get(tenant)
        entry = None if share is None else share.entries.pop(slot, None)
        if share is None or entry is None:
            return
        share.size_bytes -= entry.charged_bytes
        self._size_bytes -= entry.charged_bytes
        if not share.entries:
            del self._shares[tenant]

    def _make_room(self, size_bytes: int) -> None:
        """Drop the expired, then the oldest of whoever holds the most, until `size_bytes` fit."""
        now = self._clock()
        expired = [
            (tenant, slot)
            for tenant, share in self._shares.items()
            for slot, entry in share.entries.items()
            if entry.expires_at is not None and entry.expires_at <= now
        ]
        for tenant, slot in expired:
            self._drop(tenant, slot)
        # Freeing a little more than needed makes the walk over everything above rare.
        goal_bytes = min(self._max_bytes - size_bytes, self._max_bytes * 15 // 16)
        largest = [(-share.size_bytes, tenant) for tenant, share in self._shares.items()]
        heapq.heapify(largest)
        while largest and self._size_bytes > goal_bytes:
            _, tenant = largest[0]
            share = self._shares[tenant]
            self._drop(tenant, next(iter(share.entries)))
            if share.entries:
                heapq.heapreplace(largest, (-share.size_bytes, tenant))
            else:
                heapq.heappop(largest)

    def _events_after(self, key: str, after: int, tenant: str, limit: int) -> list[Event]:
        entry = self._find("stream", key, tenant)
        if entry is None:
            return []
        newer: list[Event] = []
        # Readers are mostly near the end, so the walk starts there.
        for event in reversed(entry.events):
            if event.number <= after:
                break
            newer.append(event)
        newer.reverse()
        return newer[:limit]

    async def _wait(self, key: str, tenant: str, wait_s: float) -> None:
        waker = asyncio.Event()
        wakers = self._waiting.setdefault((tenant, key), set())
        wakers.add(waker)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await waker.wait()
        finally:
            wakers.discard(waker)
            if not wakers and self._waiting.get((tenant, key)) is wakers:
                del self._waiting[(tenant, key)]


def open_store(url: str = "memory://") -> MemoryStore:
    """A memory store; `memory://` or empty, with options such as `memory://?max_bytes=1000000`.

    Raises:
        StoreConfigError: Another scheme, or an option that is unknown or not a number above 0.
    """
    scheme, _, rest = (url or "memory://").partition("://")
    if scheme not in ("memory", "memory:"):
        raise StoreConfigError(f"not a memory store's URL: {scheme[:40]!r}; use 'memory://'")
    known = {"max_bytes", "max_value_bytes", "max_stream_events", "max_buckets"}
    options: dict[str, int] = {}
    for part in filter(None, rest.lstrip("/").removeprefix("?").split("&")):
        name, _, number = part.partition("=")
        if name not in known or not (number.isascii() and number.isdigit()) or int(number) == 0:
            raise StoreConfigError(
                f"memory store option {part[:80]!r}: known are {', '.join(sorted(known))}, "
                "each a whole number above 0"
            )
        options[name] = int(number)
    return MemoryStore(
        max_bytes=options.get("max_bytes", 256 * 1024 * 1024),
        max_value_bytes=options.get("max_value_bytes", MAX_VALUE_BYTES),
        max_stream_events=options.get("max_stream_events", MAX_STREAM_EVENTS),
        max_buckets=options.get("max_buckets", 100_000),
    )
