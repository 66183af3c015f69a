"""The runs: followed while they go, and read back from the store by any replica afterwards.

GET /v1/runs/{id}/tree    the tree as one JSON object
GET /v1/runs/{id}/events  its events as server-sent events, `id:` the event's number; resumed by
                          `Last-Event-ID` or `?after=`, live while the run goes, and ended by one
                          event named `end`
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse

from search.run import Run
from search.tree import SearchTree, TreeEvent
from server.errors import InvalidRequest, RunNotFound, describe
from server.record import LAST, following, stored
from server.reply import compact
from server.services import Services, Shared
from server.sse import EventStream, frame
from stores.errors import StoreUnavailable

router = APIRouter()

_TENANT: Final = ""
_RUN_ID: Final = re.compile(r"run_[0-9a-f]{1,64}")
_END: Final = frame("{}", name="end")


@router.get("/v1/runs/{run_id}/tree")
async def tree(run_id: str, services: Shared) -> JSONResponse:
    """The tree as it is now."""
    run = _live(services, run_id)
    if run is not None:
        snapshot = run.tree.snapshot()
    else:
        snapshot = SearchTree.replay(await stored(services.store, run_id, _TENANT))
    state = "running" if snapshot["stop_reason"] is None else "ended"
    return JSONResponse({"object": "run.tree", "run_id": run_id, "state": state, **snapshot})


@router.get("/v1/runs/{run_id}/events")
async def events(
    run_id: str,
    services: Shared,
    after: Annotated[int | None, Query(ge=-1)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventStream:
    """The events after a given one, as they happen; all of them by default."""
    start = _resumed(last_event_id) if after is None else after
    run = _live(services, run_id)
    if run is not None:
        source = run.tree.follow(start)
    else:
        # read before the first byte, so that an unknown run is a 404 and not an empty stream
        source = _elsewhere(services, run_id, start, await stored(services.store, run_id, _TENANT))
    return EventStream(
        _frames(source), heartbeat_s=services.settings.stream.heartbeat_s, greeting=run_id
    )


def _live(services: Services, run_id: str) -> Run | None:
    """The run, if it goes on in this replica; what can be no run's id stays out of the store."""
    if not _RUN_ID.fullmatch(run_id):
        raise RunNotFound(run_id)
    return services.runs.get(run_id)


def _resumed(last_event_id: str | None) -> int:
    if not last_event_id:
        return -1
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise InvalidRequest(
            "Last-Event-ID is no event number", code="invalid_value", param="Last-Event-ID"
        )
    return int(last_event_id)


async def _elsewhere(
    services: Services, run_id: str, after: int, known: list[TreeEvent]
) -> AsyncGenerator[TreeEvent]:
    """Events of a run that ended, or that another replica is running."""
    for event in known:
        if event.number > after:
            yield event
    last = known[-1]
    if last.kind != LAST:
        patience_s = services.settings.limits.max_run_s
        # from the last known one, however far `after` is: the run's end must not be passed over
        store = services.store
        async for event in following(store, run_id, _TENANT, last.number, patience_s):
            if event.number > after:
                yield event


async def _frames(source: AsyncIterator[TreeEvent]) -> AsyncGenerator[bytes]:
    try:
        async for event in source:
            yield frame(compact(event.to_json()), number=event.number)
    except StoreUnavailable as err:
        yield frame(compact(describe(err).body()), name="error")
    yield _END
