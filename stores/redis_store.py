"""The store that replicas share: one Redis (6.2 or later) or Valkey server.

Names: ``PREFIX:KIND:{TENANT}:KEY`` with tenant and key percent-encoded, so that neither can contain
a separator or a brace; the braces keep one tenant's keys in one cluster slot. An event numbered n
is the stream entry ``0-(n+1)``. What must be atomic over several commands is a script.

Every failure is `StoreUnavailable`, within the timeout. After one that says Redis is gone, calls
fail at once for a moment instead of waiting for the timeout each; then one of them tries again.
Nothing is retried here, because a claim that is sent twice would refuse its own owner.

What this does not do: Redis Cluster redirects, Sentinel, eviction (set `maxmemory-policy` there).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from stores.base import (
    EVENTS_TTL_S,
    MAX_EVENT_NUMBER,
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
from stores.errors import StoreClosed, StoreConfigError, StoreUnavailable
from stores.redis_scripts import APPEND_EVENT, PUT_BLOB, TAKE_FROM_BUCKET

T = TypeVar("T")
_MAX_TTL_MS = 10 * 365 * 24 * 3600 * 1000


class RedisStore:
    """A `Store` in a Redis server. Opening one does not connect; `ping` does.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, without a query.
        prefix: Begins every key, so that two deployments can share one server.
        timeout_s: The longest that one call takes, connecting included.
        cooldown_s: How long calls fail at once after one that found Redis gone.
        max_connections: Connections for calls; more calls queue. As many again may wait for events.
        max_value_bytes: The largest value, event or blob.
        max_stream_events: Events kept of one stream.
        clock: Seconds that never go back, for the cooldown only; lifetimes are Redis's own time.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "bough",
        timeout_s: float = 2.0,
        cooldown_s: float = 1.0,
        max_connections: int = 64,
        max_value_bytes: int = MAX_VALUE_BYTES,
        max_stream_events: int = MAX_STREAM_EVENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = _without_password(url)
        self._prefix = quote(prefix, safe="")
        self._timeout_s = timeout_s
        self._max_value_bytes = max_value_bytes
        self._max_stream_events = max_stream_events
        self._breaker = _Breaker(cooldown_s, clock)
        self._redis = _connect(url, timeout_s, timeout_s, max_connections)
        # Blocking reads keep a connection each: apart, so that they cannot starve the other calls.
        self._waiter = _connect(url, timeout_s, MAX_WAIT_S + timeout_s, max_connections)
        self._wait_slots = asyncio.Semaphore(max_connections)
        self._append = self._redis.register_script(APPEND_EVENT)
        self._take = self._redis.register_script(TAKE_FROM_BUCKET)
        self._put = self._redis.register_script(PUT_BLOB)
        self._is_closed = False

    async def get(self, key: str, *, tenant: str) -> bytes | None:
        """See `Store.get`."""
        name = self._name("value", tenant, key)
        return cast("bytes | None", await self._call(lambda: self._redis.get(name)))

    async def set(self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None) -> None:
        """See `Store.set`."""
        name = self._name("value", tenant, key)
        self._check(value, ttl_s)
        await self._call(lambda: self._redis.set(name, value, px=_milliseconds(ttl_s)))

    async def claim(
        self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None
    ) -> bool:
        """See `Store.claim`."""
        name = self._name("value", tenant, key)
        self._check(value, ttl_s)
        claimed = await self._call(
            lambda: self._redis.set(name, value, px=_milliseconds(ttl_s), nx=True)
        )
        return bool(claimed)

    async def expire(self, key: str, ttl_s: float, *, tenant: str) -> bool:
        """See `Store.expire`."""
        name = self._name("value", tenant, key)
        if ttl_s == 0:
            return bool(await self._call(lambda: self._redis.delete(name)))
        check_lifetime(ttl_s)
        ttl_ms = _milliseconds(ttl_s) or 1
        return bool(await self._call(lambda: self._redis.pexpire(name, ttl_ms)))

    async def bucket(
        self, key: str, rate: float, capacity: float, cost: float = 1.0, *, tenant: str
    ) -> Grant:
        """See `Store.bucket`; time is the Redis server's."""
        name = self._name("bucket", tenant, key)
        check_bucket(rate, capacity, cost)
        numbers = (rate, capacity, cost, _MAX_TTL_MS)
        args = [repr(float(number)) for number in numbers]
        reply = await self._call(lambda: self._take(keys=[name], args=args))
        is_allowed, tokens = bool(int(reply[0])), float(reply[1])
        if is_allowed:
            return Grant(True, 0.0, tokens)
        wait_s = (cost - tokens) / rate if cost <= capacity else math.inf
        return Grant(False, wait_s, tokens)

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
        name = self._name("stream", tenant, key)
        self._check(data, ttl_s)
        check_number(number)
        wanted = "" if number is None else str(number)
        ttl_ms = _milliseconds(ttl_s) or 1
        args: list[bytes | str | int] = [data, wanted, self._max_stream_events, ttl_ms]
        return int(await self._call(lambda: self._append(keys=[name], args=args)))

    async def read_events(
        self, key: str, after: int = -1, *, tenant: str, limit: int = 1000, wait_s: float = 0.0
    ) -> list[Event]:
        """See `Store.read_events`."""
        name = self._name("stream", tenant, key)
        check_page(after, limit, wait_s)
        last_id = f"0-{min(after, MAX_EVENT_NUMBER) + 1}"
        found = await self._page(name, last_id, limit)
        if found or wait_s == 0:
            return found
        await self._wait(name, last_id, min(wait_s, MAX_WAIT_S))
        return await self._page(name, last_id, limit)

    async def get_blob(self, key: str, *, tenant: str) -> Blob | None:
        """See `Store.get_blob`."""
        name = self._name("blob", tenant, key)
        version, data = await self._call(
            lambda: cast("Awaitable[list[Any]]", self._redis.hmget(name, ["version", "data"]))
        )
        return None if version is None else Blob(data, int(version))

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
        name = self._name("blob", tenant, key)
        self._check(data, ttl_s)
        versions = f"{self._prefix}:versions:{{{_encode(tenant)}}}"
        expected = "" if if_version is None else if_version
        args: list[bytes | str | int] = [data, str(expected), _milliseconds(ttl_s) or ""]
        written, version = await self._call(lambda: self._put(keys=[name, versions], args=args))
        return int(version) if int(written) else Conflict(int(version))

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._call(self._redis.ping)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._is_closed = True
        for client in (self._redis, self._waiter):
            try:
                await client.aclose()
            except (RedisError, OSError):
                continue  # the connection was gone already, which is what was asked for

    def _name(self, kind: str, tenant: str, key: str) -> str:
        check_name(tenant, key)
        return f"{self._prefix}:{kind}:{{{_encode(tenant)}}}:{_encode(key)}"

    def _check(self, value: bytes, ttl_s: float | None) -> None:
        check_size(value, self._max_value_bytes)
        check_lifetime(ttl_s)

    async def _page(self, name: str, last_id: str, limit: int) -> list[Event]:
        entries = await self._call(
            lambda: cast(
                "Awaitable[list[tuple[bytes, dict[bytes, bytes]]]]",
                self._redis.xrange(name, min=f"({last_id}", max="+", count=min(limit, 1_000_000)),
            )
        )
        return [
            Event(int(entry_id.partition(b"-")[2]) - 1, fields[b"d"])
            for entry_id, fields in entries
        ]

    async def _wait(self, name: str, last_id: str, wait_s: float) -> None:
        """Return when the stream has something newer, or after `wait_s`."""
        if self._wait_slots.locked():
            # Every waiting connection is taken: a short pause keeps this reader from spinning.
            await asyncio.sleep(min(wait_s, 0.1))
            return
        async with self._wait_slots:
            await self._call(
                lambda: self._waiter.xread(
                    {name: last_id}, count=1, block=max(1, round(wait_s * 1000))
                ),
                timeout_s=wait_s + self._timeout_s,
            )

    async def _call(self, send: Callable[[], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """What `send` returns; every failure of it as StoreUnavailable."""
        if self._is_closed:
            raise StoreClosed(f"the store at {self._where} is closed")
        if not self._breaker.may_try():
            raise StoreUnavailable(f"redis at {self._where} was just found gone; not tried again")
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                reply = await send()
        except ResponseError as err:
            self._breaker.succeeded()  # it answers, if only to refuse
            raise StoreUnavailable(f"redis at {self._where} refused: {err}") from err
        except (RedisError, OSError, TimeoutError) as err:
            self._breaker.failed()
            raise StoreUnavailable(
                f"redis at {self._where} is gone: {type(err).__name__}: {err}"
            ) from err
        self._breaker.succeeded()
        return reply


class _Breaker:
    """Whether trying is worth it: after a failure, one try per cooldown until one succeeds."""

    def __init__(self, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._next_try_at: float | None = None

    def may_try(self) -> bool:
        if self._next_try_at is None:
            return True
        now = self._clock()
        if now < self._next_try_at:
            return False
        self._next_try_at = now + self._cooldown_s
        return True

    def failed(self) -> None:
        self._next_try_at = self._clock() + self._cooldown_s

    def succeeded(self) -> None:
        self._next_try_at = None


def open_store(url: str) -> RedisStore:
    """A store at `url`, ``redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=P&timeout_s=T]``.

    Raises:
        StoreConfigError: Another scheme, a port or database that is no number, an unknown option.
    """
    try:
        parts = urlsplit(url)
        port_and_db = (parts.port, int(parts.path.strip("/") or 0) if parts.scheme != "unix" else 0)
    except ValueError as err:
        raise StoreConfigError(
            f"not a usable store URL: {_without_password(url)}; port and database are numbers"
        ) from err
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise StoreConfigError(
            f"not a redis store's URL: scheme {parts.scheme[:40]!r}; use redis, rediss or unix"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = options.pop("prefix", "bough")
    timeout_text = options.pop("timeout_s", "2")
    if options or port_and_db[1] < 0 or not prefix:
        raise StoreConfigError(
            f"redis store options {sorted(options)}: known are prefix and timeout_s; "
            "the database is 0 or above"
        )
    try:
        timeout_s = float(timeout_text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= 60:
        raise StoreConfigError(f"timeout_s is {timeout_text[:40]!r}; it must be in (0, 60]")
    bare = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return RedisStore(bare, prefix=prefix, timeout_s=timeout_s)


def _connect(
    url: str, connect_timeout_s: float, socket_timeout_s: float, max_connections: int
) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=connect_timeout_s,
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=socket_timeout_s,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    return Redis.from_pool(pool)


def _encode(text: str) -> str:
    # Lone surrogates are text too; a tenant made of them must not be an error of ours.
    return quote(text, safe="", errors="surrogatepass")


def _milliseconds(ttl_s: float | None) -> int | None:
    return None if ttl_s is None else min(max(1, math.ceil(ttl_s * 1000)), _MAX_TTL_MS)


def _without_password(url: str) -> str:
    """Host and path only: nothing secret may reach a message or a log."""
    tail = url.rpartition("@")[2] if "@" in url else url.partition("://")[2]
    return tail.partition("?")[0] or "an empty address"
