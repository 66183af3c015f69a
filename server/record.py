"""Copies of run events in the store, so that any replica can show a run, also after it has ended.

Every event is copied as it happens. A store that does not answer costs the copy, never the run: it
is counted and logged once per run, and the rest of that run is not copied.
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
from stores.base import Event, Store
from stores.errors import StoreUnavailable, ValueTooLarge

log = logging.getLogger("bough.server")

LAST: Final = "ended"
"""The kind of a run's last event."""

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
        key, tenant = key_of(run.request.run_id), run.request.tenant
        try:
            async for event in run.tree.follow():
                data = json.dumps(event.to_json(), separators=(",", ":")).encode()
                await self._store.append_event(key, data, tenant=tenant, number=event.number)
        except (StoreUnavailable, ValueTooLarge) as err:
            self._metrics.store_errors.labels("run_events").inc()
            log.warning("events of run %s are not copied: %s", run.request.run_id, err)


def key_of(run_id: str) -> str:
    """The stream of a run's events."""
    return f"run:{run_id}"


async def stored(store: Store, run_id: str, tenant: str) -> list[TreeEvent]:
    """Every stored event of a run, from its first on.

    Raises:
        RunNotFound: There are none, or the first ones have been dropped.
        StoreUnavailable: The store does not answer.
    """
    found: list[TreeEvent] = []
    while True:
        after = found[-1].number if found else -1
        page = await store.read_events(key_of(run_id), after, tenant=tenant, limit=_PAGE)
        found += [_event(event) for event in page]
        if len(page) < _PAGE:
            break
    if not found or found[0].number != 0:
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
        page = await store.read_events(
            key_of(run_id), after, tenant=tenant, limit=_PAGE, wait_s=_WAIT_S
        )
        quiet_s = 0.0 if page else quiet_s + _WAIT_S
        for copied in page:
            event = _event(copied)
            yield event
            after = event.number
            if event.kind == LAST:
                return


def _event(copied: Event) -> TreeEvent:
    return TreeEvent.from_json(json.loads(copied.data))
