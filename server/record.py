"""Copies of run events in the store, so that any replica can show a run, also after it has ended.

Every event is copied as it happens. A store that does not answer costs the copy, never the run: it
is counted and logged once per run, and the rest of that run is not copied.

A store keeps only the last events of a stream, and a tree needs the first, so a run's events go to
as many streams as they need, `SEGMENT` to each. Beyond `MAX_EVENTS` nothing is kept but how the run
ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Final

from search.run import Run
from search.tree import TreeEvent
from server.errors import RunNotFound
from server.metrics import Metrics
from stores.base import EVENTS_TTL_S, MAX_STREAM_EVENTS, Store
from stores.errors import StoreUnavailable, ValueTooLarge

log = logging.getLogger("bough.server")

LAST: Final = "ended"
"""The kind of a run's last event."""

SEGMENT: Final = MAX_STREAM_EVENTS // 2
"""Events in one stream: fewer than what a store keeps of one."""

MAX_EVENTS: Final = 20 * SEGMENT
"""Events that are kept of one run; its end comes on top."""

_PAGE: Final = 1000
_WAIT_S: Final = 5.0


class LiveRuns(Mapping[str, Run]):
    """The runs that are going, or whose events are still being copied, by id.

    Args:
        store: Where the copies go.
        metrics: Counts copies that failed.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._runs: dict[str, Run] = {}
        self._copies: set[asyncio.Task[None]] = set()

    def __getitem__(self, run_id: str) -> Run:
        return self._runs[run_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def begin(self, run: Run) -> None:
        """Show a run and copy its events until its tree is closed."""
        run_id = run.request.run_id
        self._runs[run_id] = run
        copy = asyncio.create_task(self._copy(run), name=f"copy-{run_id}")
        self._copies.add(copy)

        def ended(task: asyncio.Task[None]) -> None:
            self._copies.discard(task)
            self._runs.pop(run_id, None)

        copy.add_done_callback(ended)

    async def drain(self) -> None:
        """Return when everything is copied."""
        while self._copies:
            await asyncio.wait(self._copies)

    async def _copy(self, run: Run) -> None:
        request = run.request
        # the first stream must outlive the run as long as the last one does
        ttl_s = EVENTS_TTL_S + (request.limits.wall_ms or 0) / 1000
        try:
            async for event in run.tree.follow():
                if event.number >= MAX_EVENTS and event.kind != LAST:
                    continue
                await self._store.append_event(
                    key_of(request.run_id, event.number),
                    json.dumps(event.to_json(), separators=(",", ":")).encode(),
                    tenant=request.tenant,
                    number=event.number,
                    ttl_s=ttl_s,
                )
        except (StoreUnavailable, ValueTooLarge) as err:
            self._metrics.store_errors.labels("run_events").inc()
            log.warning("events of run %s are not copied: %s", request.run_id, err)


def key_of(run_id: str, number: int) -> str:
    """The stream that holds the event of this number."""
    return f"run:{run_id}:{min(number, MAX_EVENTS) // SEGMENT}"


async def stored(store: Store, run_id: str, tenant: str) -> list[TreeEvent]:
    """Every stored event of a run, from its first on.

    Raises:
        RunNotFound: There are none, or the first ones have been dropped.
        StoreUnavailable: The store does not answer.
    """
    found: list[TreeEvent] = []
    while page := await _page(store, run_id, tenant, found[-1].number if found else -1):
        found += page
    kept = [event.number for event in found if event.number < MAX_EVENTS]
    if kept != list(range(len(kept))) or not kept:
        raise RunNotFound(run_id)
    return found


async def following(
    store: Store, run_id: str, tenant: str, after: int, patience_s: float
) -> AsyncGenerator[TreeEvent]:
    """Events above `after` as they are stored, up to the last, or until none came for so long.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    quiet_s = 0.0
    while quiet_s < patience_s:
        page = await _page(store, run_id, tenant, after, wait_s=_WAIT_S)
        quiet_s = 0.0 if page else quiet_s + _WAIT_S
        for event in page:
            yield event
            after = event.number
            if event.kind == LAST:
                return


async def _page(
    store: Store, run_id: str, tenant: str, after: int, *, wait_s: float = 0.0
) -> list[TreeEvent]:
    """Events above `after` out of one stream; empty only when there are none in any."""
    key = key_of(run_id, after + 1)
    copied = await store.read_events(key, after, tenant=tenant, limit=_PAGE, wait_s=wait_s)
    return [TreeEvent.from_json(json.loads(one.data)) for one in copied]
