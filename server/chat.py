"""POST /v1/chat/completions: one request, one run, as JSON or as a stream.

A request is read, resolved and checked before it is admitted, so that whatever is wrong with it is
a status. After that a stream begins at once, and what fails later is one event on it. A client that
goes takes its run along.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from engines.errors import EngineClosed
from reward_models.errors import RewardUnavailable
from search.run import Piece, Result, Run
from search.tree import TreeEvent
from server.admission import Ticket
from server.errors import BodyTooLarge, ShuttingDown, code_of, describe
from server.reply import Reply, compact
from server.resolve import Plan, resolve
from server.services import Services, Shared
from server.sse import DONE, ClientGone, EventStream, frame, merged, unless_gone
from server.wire import parse

log = logging.getLogger("bough.server")
router = APIRouter()

CLIENT_GONE: Final = 499
"""What the log shows for a client that went; nobody receives it."""

UNRESOLVED: Final = "unresolved"
"""Stands for the strategy of a request that was refused before it named one that there is."""

_DRAIN_FACTOR: Final = 4
"""How much of a body over the limit is read off, in limits, so that the refusal can be received."""


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, services: Shared) -> Response:
    """Answer a conversation by the strategy that the request names."""
    arrived_s = time.monotonic()
    run_id = f"run_{uuid.uuid4().hex}"
    try:
        with _refusals(services, UNRESOLVED):
            body = await read_body(request, services.settings.limits.max_body_bytes)
            plan = await resolve(parse(body), services.catalog, services.settings.limits, run_id)
        return await _respond(request, services, plan, arrived_s)
    except (ClientDisconnect, ClientGone):
        log.info("run %s: the client went, the run was cancelled", run_id)
        return Response(status_code=CLIENT_GONE)


async def _respond(request: Request, services: Services, plan: Plan, arrived_s: float) -> Response:
    reply = Reply(plan)
    is_stream = bool(plan.wire.stream)
    with _refusals(services, plan.asked):
        # a run that cannot be is refused here, before the cache and before anybody waits
        run = Run(
            plan.run,
            engine=plan.served.engine,
            judge=plan.judge,
            further=plan.further,
            store=services.store,
        )
        if (stored := await services.cache.get(plan)) is not None:
            services.metrics.requests.labels(plan.asked, "ok").inc()
            return _from_cache(reply, reply.cached(stored), services, is_stream)
        ticket = services.admission.enter()
    completion = Completion(plan, run, reply, ticket, services, arrived_s)
    headers = {"X-Bough-Run-Id": plan.run.run_id, "X-Bough-Strategy": plan.asked}
    if is_stream:
        return EventStream(
            completion.frames(),
            heartbeat_s=services.settings.stream.heartbeat_s,
            greeting=f"bough {plan.run.run_id}",
            headers=headers,
            farewell=frame(compact(describe(ShuttingDown()).body())),
            on_end=ticket.release,
        )
    try:
        return JSONResponse(await unless_gone(request, completion.whole()), headers=headers)
    finally:
        ticket.release()


@contextmanager
def _refusals(services: Services, strategy: str) -> Iterator[None]:
    """Count what ends a request before it is admitted; from then on its run is counted."""
    try:
        yield
    except ClientDisconnect:
        services.metrics.requests.labels(strategy, "cancelled").inc()
        raise
    except Exception as err:
        services.metrics.requests.labels(strategy, code_of(err)).inc()
        raise


class Completion:
    """One admitted request on its way to an answer. Consumed once, by `whole` or by `frames`."""

    def __init__(
        self,
        plan: Plan,
        run: Run,
        reply: Reply,
        ticket: Ticket,
        services: Services,
        arrived_s: float,
    ) -> None:
        self._plan = plan
        self._run = run
        self._reply = reply
        self._ticket = ticket
        self._services = services
        self._arrived_s = arrived_s
        self._status = "cancelled"
        self._has_text = False

    async def whole(self) -> dict[str, Any]:
        """The reply of an unstreamed request; cheaper than a stream, which asks for every token."""
        with self._counted():
            await self._begin()
            result = await self._run.result()
            self._note(result)
        return await self._finished(result)

    async def frames(self) -> AsyncGenerator[bytes]:
        """The frames of a streamed request; ends with [DONE], or with one error."""
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    yield frame(compact(chunk))
        except Exception as err:  # the status is out: this event is the only way left to tell
            yield frame(compact(describe(err).body()))
        else:
            yield DONE

    async def _chunks(self) -> AsyncGenerator[dict[str, Any]]:
        yield self._reply.role_chunk(0)
        result: Result | None = None
        source: AsyncGenerator[Piece | Result | TreeEvent] = self._items()
        if self._plan.returns.events:
            source = merged(source, self._run.tree.follow())
        async with aclosing(source) as items:
            async for item in items:
                if isinstance(item, Result):
                    result = item
                elif isinstance(item, TreeEvent):
                    yield self._reply.event_chunk(item.to_json())
                elif (chunk := self._reply.piece_chunk(item)) is not None:
                    yield chunk
        assert result is not None
        completion = await self._finished(result)
        for chunk in self._reply.last_chunks(completion, streamed=1):
            yield chunk

    async def _finished(self, result: Result) -> dict[str, Any]:
        completion = self._reply.completion(result, self._run.tree)
        await self._services.cache.put(self._plan, completion)
        return completion

    async def _items(self) -> AsyncGenerator[Piece | Result]:
        """The run's items, counted."""
        with self._counted():
            await self._begin()
            async with aclosing(self._run.stream()) as items:
                async for item in items:
                    self._note(item)
                    yield item

    async def _begin(self) -> None:
        """Wait for a place; from then on the run is known to its routes."""
        await self._ticket.granted()
        self._services.runs.begin(self._run)

    def _note(self, item: Piece | Result) -> None:
        metrics, strategy = self._services.metrics, self._plan.asked
        if isinstance(item, Result):
            self._status = "ok"
        elif item.text and not self._has_text:
            self._has_text = True
            waited_s = time.monotonic() - self._arrived_s
            metrics.first_token_seconds.labels(strategy).observe(waited_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        metrics, strategy = self._services.metrics, self._plan.asked
        try:
            yield
        except EngineClosed:
            self._services.catalog.gone.add(self._plan.served.model_id)
            self._status = "engine_unavailable"
            raise
        except Exception as err:
            gone = getattr(err, "model_id", "") or self._plan.judge_id
            if isinstance(err, RewardUnavailable) and gone is not None:
                self._services.catalog.gone.add(gone)
            self._status = code_of(err)
            raise
        finally:
            # a run that never began has a tree that nobody else would close
            self._run.tree.close("cancelled")
            self._ticket.release()
            took_s = time.monotonic() - self._arrived_s
            metrics.requests.labels(strategy, self._status).inc()
            metrics.count_run(strategy, self._run, is_answered=self._status == "ok")
            metrics.request_seconds.labels(strategy).observe(took_s)
            plan = self._plan
            log.info(
                "run %s: %s by %s, judged by %s: %s after %.3f s",
                *(plan.run.run_id, plan.served.model_id, strategy, plan.judge_id or "nobody"),
                *(self._status, took_s),
            )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: It is over the limit. Some of it is read off first: a client that is still
            sending would otherwise see a broken connection instead of the refusal.
    """
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            body += chunk
        elif size > _DRAIN_FACTOR * max_bytes:
            break
    if size > max_bytes:
        raise BodyTooLarge(max_bytes)
    return bytes(body)


def _from_cache(
    reply: Reply, completion: dict[str, Any], services: Services, is_stream: bool
) -> Response:
    bough = completion["bough"]
    headers = {
        "X-Bough-Run-Id": bough["run_id"],
        "X-Bough-Strategy": bough["resolved"].partition(":")[0],
    }
    if not is_stream:
        return JSONResponse(completion, headers=headers)

    async def frames() -> AsyncGenerator[bytes]:
        for chunk in reply.last_chunks(completion, streamed=0):
            yield frame(compact(chunk))
        yield DONE

    return EventStream(frames(), heartbeat_s=services.settings.stream.heartbeat_s, headers=headers)
