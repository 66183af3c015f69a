"""The seam between bough and whatever it shares between replicas.

A store holds four kinds of things, each in its own namespace: small values with a lifetime, token
buckets, numbered event streams, and versioned blobs. Everything belongs to one tenant, and no
tenant can name what another one holds: `tenant` and `key` are arbitrary text, never joined by a
separator that they could contain.

What a store does not do: transactions over several keys, listing of keys, durability. Every failure
of the store itself is `StoreUnavailable`, raised quickly, so that a caller can go on without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from stores.errors import StoreInputError, ValueTooLarge

MAX_KEY_CHARS: Final = 1024
"""The longest tenant or key."""
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""The largest value, event or blob, unless a store is told otherwise."""
MAX_STREAM_EVENTS: Final = 10_000
"""The most recent events that a stream keeps, unless a store is told otherwise."""
MAX_EVENT_NUMBER: Final = 2**53 - 2
"""The largest event number; beyond it floats, which scripts count in, lose ones."""
MAX_WAIT_S: Final = 20.0
"""The longest that one `read_events` waits."""
EVENTS_TTL_S: Final = 3600.0
"""How long a stream lives after its last event by default."""


@dataclass(frozen=True)
class Grant:
    """What a token bucket said.

    Attributes:
        is_allowed: Whether the cost was taken.
        wait_s: Seconds until the same cost would be allowed if nobody else asked; 0 when allowed,
            infinite when the cost exceeds the capacity.
        remaining: Tokens left in the bucket.
    """

    is_allowed: bool
    wait_s: float
    remaining: float


@dataclass(frozen=True)
class Event:
    """One event of a stream; numbers rise and may have gaps."""

    number: int
    data: bytes


@dataclass(frozen=True)
class Blob:
    """A versioned value. Versions are never used twice by one store, not even after expiry."""

    data: bytes
    version: int


@dataclass(frozen=True)
class Conflict:
    """A blob was not written: it is at `version`, 0 when there is none."""

    version: int


@runtime_checkable
class Store(Protocol):
    """Shared state, per tenant. See `stores.conformance` for its laws.

    Every method may raise `StoreUnavailable` (and `StoreClosed` after `aclose`), and
    `StoreInputError` for arguments outside the contract. Lifetimes are seconds, above 0; None keeps
    the thing until it is evicted.
    """

    async def get(self, key: str, *, tenant: str) -> bytes | None:
        """The value, or None when it is missing, expired or evicted."""

    async def set(self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None) -> None:
        """Write a value, replacing value and lifetime of what was there.

        Raises:
            ValueTooLarge: Over the store's bound.
        """

    async def claim(
        self, key: str, value: bytes, *, tenant: str, ttl_s: float | None = None
    ) -> bool:
        """Write a value only where there is none: of all that ask at once, one gets True.

        Raises:
            ValueTooLarge: Over the store's bound.
        """

    async def expire(self, key: str, ttl_s: float, *, tenant: str) -> bool:
        """Give a value a new lifetime, 0 to remove it now; False when there was none."""

    async def bucket(
        self, key: str, rate: float, capacity: float, cost: float = 1.0, *, tenant: str
    ) -> Grant:
        """Take `cost` tokens from a bucket refilled by `rate` a second up to `capacity`.

        A new bucket is full. A refused cost takes nothing. A negative cost gives tokens back, never
        beyond the capacity. A bucket that is full again is forgotten, so an idle one costs nothing.
        """

    async def append_event(
        self,
        key: str,
        data: bytes,
        *,
        tenant: str,
        number: int | None = None,
        ttl_s: float = EVENTS_TTL_S,
    ) -> int:
        """Append to a stream and renew its lifetime; returns the event's number.

        Without `number` it is the last one plus 1, from 0. A `number` that is not above the last
        one is taken as a repeated write and adds nothing, so that an append that failed can be
        tried again.

        Raises:
            ValueTooLarge: Over the store's bound.
        """

    async def read_events(
        self, key: str, after: int = -1, *, tenant: str, limit: int = 1000, wait_s: float = 0.0
    ) -> list[Event]:
        """Events numbered above `after`, oldest first, at most `limit`.

        When there are none, waits up to `wait_s` (at most MAX_WAIT_S) for the first; may return
        empty earlier. A missing stream reads as empty.
        """

    async def get_blob(self, key: str, *, tenant: str) -> Blob | None:
        """The blob with its version, or None."""

    async def put_blob(
        self,
        key: str,
        data: bytes,
        *,
        tenant: str,
        if_version: int | None = None,
        ttl_s: float | None = None,
    ) -> int | Conflict:
        """Write a blob and return its new version.

        Args:
            key: Its name.
            data: All of it.
            tenant: Whose it is.
            if_version: Write only over this version; 0 only where there is none; None always.
            ttl_s: Its lifetime.

        Raises:
            ValueTooLarge: Over the store's bound.
        """

    async def ping(self) -> None:
        """Return when the store answers."""

    async def aclose(self) -> None:
        """Give up connections and data; idempotent, never raises for a store that is gone."""


def check_name(tenant: str, key: str) -> None:
    """Refuse names that no store takes.

    Raises:
        StoreInputError: The key is empty, or either is longer than MAX_KEY_CHARS.
    """
    if not key:
        raise StoreInputError("the key is empty")
    for name, text in (("tenant", tenant), ("key", key)):
        if len(text) > MAX_KEY_CHARS:
            raise StoreInputError(
                f"the {name} has {len(text)} characters; at most {MAX_KEY_CHARS} are taken: hash it"
            )


def check_size(value: bytes, max_bytes: int) -> None:
    """Refuse values over the bound.

    Raises:
        ValueTooLarge: It is larger than `max_bytes`.
    """
    if len(value) > max_bytes:
        raise ValueTooLarge(len(value), max_bytes)


def check_lifetime(ttl_s: float | None) -> None:
    """Refuse lifetimes that are not above 0.

    Raises:
        StoreInputError: It is 0, negative, infinite or not a number.
    """
    if ttl_s is not None and not (ttl_s > 0 and math.isfinite(ttl_s)):
        raise StoreInputError(f"the lifetime is {ttl_s} s; it must be finite and above 0")


def check_bucket(rate: float, capacity: float, cost: float) -> None:
    """Refuse buckets that could never be filled.

    Raises:
        StoreInputError: Rate or capacity is not finite and above 0, or the cost is not finite.
    """
    for name, number in (("rate", rate), ("capacity", capacity)):
        if not (number > 0 and math.isfinite(number)):
            raise StoreInputError(f"the bucket's {name} is {number}; it must be finite and above 0")
    if not math.isfinite(cost):
        raise StoreInputError(f"the cost is {cost}; it must be finite")


def check_page(after: int, limit: int, wait_s: float) -> None:
    """Refuse reads that make no sense.

    Raises:
        StoreInputError: `after` below -1, `limit` below 1, or `wait_s` negative or not a number.
    """
    if after < -1 or limit < 1 or not wait_s >= 0:
        raise StoreInputError(
            f"after={after}, limit={limit}, wait_s={wait_s}: "
            "need after >= -1, limit >= 1, wait_s >= 0"
        )


def check_number(number: int | None) -> None:
    """Refuse event numbers that cannot be kept.

    Raises:
        StoreInputError: It is negative or above MAX_EVENT_NUMBER.
    """
    if number is not None and not 0 <= number <= MAX_EVENT_NUMBER:
        raise StoreInputError(
            f"the event number is {number}; numbers go from 0 to {MAX_EVENT_NUMBER}"
        )
