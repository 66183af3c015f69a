"""The memory store against a plain dict, under any sequence of calls and passing time."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stores.base import Blob, Conflict, Event
from stores.memory import MemoryStore

T = TypeVar("T")
tenants = st.sampled_from(["", "a", "b", "a:b"])
keys = st.sampled_from(["k", "b:k", ":k", "b"])
values = st.binary(max_size=8)
lifetimes = st.sampled_from([None, 1.0, 5.0])
Name = tuple[str, str]


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a call that never has to wait."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    pytest.fail("the call waited")


class StoreAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.store = MemoryStore(clock=lambda: self.now_s, max_stream_events=4)
        self.values: dict[Name, tuple[bytes, float | None]] = {}
        self.blobs: dict[Name, tuple[bytes, int, float | None]] = {}
        self.streams: dict[Name, tuple[list[Event], float]] = {}
        self.levels: dict[Name, tuple[float, float]] = {}
        self.versions: set[int] = set()

    def end(self, ttl_s: float | None) -> float | None:
        return None if ttl_s is None else self.now_s + ttl_s

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for held in (self.values, self.blobs, self.streams):
            ended = [n for n, v in held.items() if v[-1] is not None and v[-1] <= self.now_s]
            for name in ended:
                del held[name]

    @rule(tenant=tenants, key=keys, value=values, ttl_s=lifetimes)
    def write(self, tenant: str, key: str, value: bytes, ttl_s: float | None) -> None:
        at_once(self.store.set(key, value, tenant=tenant, ttl_s=ttl_s))
        self.values[tenant, key] = (value, self.end(ttl_s))

    @rule(tenant=tenants, key=keys, value=values, ttl_s=lifetimes)
    def claim(self, tenant: str, key: str, value: bytes, ttl_s: float | None) -> None:
        won = at_once(self.store.claim(key, value, tenant=tenant, ttl_s=ttl_s))
        assert won == ((tenant, key) not in self.values)
        if won:
            self.values[tenant, key] = (value, self.end(ttl_s))

    @rule(tenant=tenants, key=keys, ttl_s=st.sampled_from([0.0, 2.0]))
    def expire(self, tenant: str, key: str, ttl_s: float) -> None:
        known = self.values.pop((tenant, key), None)
        assert at_once(self.store.expire(key, ttl_s, tenant=tenant)) == (known is not None)
        if known is not None and ttl_s > 0:
            self.values[tenant, key] = (known[0], self.end(ttl_s))

    @rule(tenant=tenants, key=keys, data=values, number=st.none() | st.integers(0, 12))
    def append(self, tenant: str, key: str, data: bytes, number: int | None) -> None:
        events, _ = self.streams.get((tenant, key), ([], 0.0))
        last = events[-1].number if events else -1
        expected = last + 1 if number is None else number
        given = at_once(self.store.append_event(key, data, tenant=tenant, number=number, ttl_s=5.0))
        assert given == expected
        if expected > last:
            events = [*events, Event(expected, data)][-4:]
        self.streams[tenant, key] = (events, self.now_s + 5.0)

    @rule(tenant=tenants, key=keys, after=st.integers(-1, 12), limit=st.integers(1, 5))
    def read(self, tenant: str, key: str, after: int, limit: int) -> None:
        events, _ = self.streams.get((tenant, key), ([], 0.0))
        expected = [event for event in events if event.number > after][:limit]
        seen = at_once(self.store.read_events(key, after, tenant=tenant, limit=limit))
        assert seen == expected

    @rule(
        tenant=tenants,
        key=keys,
        data=values,
        ttl_s=lifetimes,
        expect=st.sampled_from(["any", "current", "none", "wrong"]),
    )
    def put(self, tenant: str, key: str, data: bytes, ttl_s: float | None, expect: str) -> None:
        _, current, _ = self.blobs.get((tenant, key), (b"", 0, None))
        if_version = {"any": None, "current": current, "none": 0, "wrong": current + 1000}[expect]
        written = at_once(
            self.store.put_blob(key, data, tenant=tenant, if_version=if_version, ttl_s=ttl_s)
        )
        if if_version is not None and if_version != current:
            assert written == Conflict(current)
            return
        assert isinstance(written, int)
        assert written not in self.versions
        self.versions.add(written)
        self.blobs[tenant, key] = (data, written, self.end(ttl_s))

    @rule(tenant=tenants, key=keys, cost=st.sampled_from([-3.0, 0.0, 1.0, 4.0, 9.0]))
    def take(self, tenant: str, key: str, cost: float) -> None:
        rate, capacity = 0.5, 8.0
        tokens, at_s = self.levels.get((tenant, key), (capacity, self.now_s))
        tokens = min(capacity, tokens + (self.now_s - at_s) * rate)
        grant = at_once(self.store.bucket(key, rate, capacity, cost, tenant=tenant))
        assert grant.is_allowed == (cost <= tokens)
        if grant.is_allowed:
            tokens = min(capacity, tokens - cost)
        else:
            assert grant.wait_s == ((cost - tokens) / rate if cost <= capacity else float("inf"))
        assert grant.remaining == tokens
        self.levels[tenant, key] = (tokens, self.now_s)

    @invariant()
    def everything_reads_back(self) -> None:
        for tenant in ("", "a", "b", "a:b"):
            for key in ("k", "b:k", ":k", "b"):
                value = self.values.get((tenant, key), (None,))[0]
                assert at_once(self.store.get(key, tenant=tenant)) == value
                blob = self.blobs.get((tenant, key))
                expected = blob and Blob(blob[0], blob[1])
                assert at_once(self.store.get_blob(key, tenant=tenant)) == expected


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
