"""Server-sent events, and noticing that a client has gone.

`EventStream` sends its headers and a first comment at once, then each frame as it comes, and a
comment wherever nothing else was sent for a while. When the client goes, or the server stops, it
closes the generator that makes the frames, whose `finally` is where runs are cancelled. The
generator lives in one task from beginning to end.

Frames are never coalesced and never buffered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


def comment(text: str) -> bytes:
    """A frame that every client skips."""
    return f": {text}\n\n".encode()


def frame(data: str, *, name: str | None = None, number: int | None = None) -> bytes:
    """One event; `data` must hold no line breaks, as compact JSON does not."""
    lines = [] if name is None else [f"event: {name}"]
    if number is not None:
        lines.append(f"id: {number}")
    return "\n".join([*lines, f"data: {data}", "", ""]).encode()


class ClientGone(Exception):
    """The client closed the connection before there was an answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the client goes.

    Raises:
        ClientGone: The client went first; `work` has ended by then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _stop(task, gone)


async def merged(*sources: AsyncIterator[Any]) -> AsyncGenerator[Any]:
    """The items of several generators as they come; an error of one ends them all.

    All of them are closed at the end.
    """
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

    async def pump(source: AsyncIterator[Any]) -> None:
        try:
            async for item in source:
                await queue.put(item)
        except Exception as err:  # handed on, and raised below
            await queue.put(_End(err))
        else:
            await queue.put(_End(None))
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    try:
        going = len(tasks)
        while going:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                going -= 1
    finally:
        await _stop(*tasks)


@dataclass(frozen=True)
class _End:
    """The end of one source."""

    error: Exception | None


class EventStream(Response):
    """A response whose body is the frames of a generator, which it owns.

    Args:
        frames: Makes the frames; closed when the stream ends, however it ends.
        heartbeat_s: Longest silence before a comment is sent.
        greeting: Text of the first comment.
        headers: More headers.
        farewell: Frame that is sent last when the server stops first.
        on_end: Called once when the stream has ended, also if it never began.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        *,
        heartbeat_s: float,
        greeting: str = "ok",
        headers: Mapping[str, str] | None = None,
        farewell: bytes = b"",
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._heartbeat_s = heartbeat_s
        self._greeting = greeting
        self._farewell = farewell
        self._on_end = on_end
        # proxies that buffer would turn a stream back into one late answer
        plain = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self.init_headers({**plain, **(headers or {})})
        self._has_begun = self._has_ended = False
        self._is_quiet = True
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client waits for."""
        body = asyncio.ensure_future(self._send_all(send))
        beat = asyncio.ensure_future(self._beat(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({body, beat, gone}, return_when=asyncio.FIRST_COMPLETED)
            if body.done():
                body.result()
        except asyncio.CancelledError:  # the server stops
            await _stop(body, beat)
            if self._has_begun and not self._has_ended:
                await self._send(send, self._farewell, more=False)
            raise
        finally:
            await _stop(body, beat, gone)
            await self._frames.aclose()
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        self._has_begun = True
        await self._send(send, comment(self._greeting))
        async with aclosing(self._frames) as frames:
            async for piece in frames:
                self._is_quiet = False
                await self._send(send, piece)
        self._has_ended = True
        await self._send(send, b"", more=False)

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if self._is_quiet:
                await self._send(send, comment("keep-alive"))
            self._is_quiet = True

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with self._turn:
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, wait until it has ended, and drop what it raised."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
