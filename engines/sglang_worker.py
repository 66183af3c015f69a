"""One SGLang worker over HTTP: requests in flight, aborts and health.

Requests are streams even where nobody reads
deltas: silence is then a fault, however long an answer takes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx

from engines.errors import EngineClosed, ModelLoadError, PromptError
from engines.sglang_discovery import WorkerInfo, discover
from engines.sglang_options import WorkerOptions
from engines.sglang_wire import (
    EventCutter,
    News,
    NotTaken,
    Reader,
    check_event,
    check_finish,
    message_in,
    parsed,
    raise_for,
)

log = logging.getLogger("bough.engines.sglang")

_HEALTH_TIMEOUT_S: Final = 30.0  # the server gives up on itself after 20 s


class Worker:
    """One worker.

    Args:
        engine: The model id, for messages.
        url: Its address.
        options: Time limits and the key.
        client: Shared by all workers of an engine.
        info: From `discover`; None while nobody has answered.
    """

    def __init__(
        self,
        engine: str,
        url: str,
        options: WorkerOptions,
        client: httpx.AsyncClient,
        info: WorkerInfo | None,
    ) -> None:
        self.url = url
        self.info = info
        self.is_alive = info is not None
        self.running = 0
        self.waiting = 0
        self._engine = engine
        self._options = options
        self._client = client
        self._aborts: set[asyncio.Task[None]] = set()

    async def generate(self, body: Mapping[str, Any]) -> AsyncGenerator[News]:
        """News of one /generate request; closing the generator aborts it.

        Args:
            body: The request; a ``rid`` in it is only what its id begins with.

        Raises:
            NotTaken: Nothing was drawn; it may be sent again.
            PromptError: The worker refuses the request.
            EngineClosed: The worker failed or fell silent.
        """
        rid = f"{body.get('rid', '')}{uuid.uuid4().hex}"
        may_run = True
        self.running += 1
        try:
            url, request = f"{self.url}/generate", {**body, "rid": rid, "stream": True}
            async with self._client.stream("POST", url, json=request) as response:
                await self._check(response)
                async with aclosing(self._read(response)) as all_news:
                    async for news in all_news:
                        may_run = news.finish is None
                        yield news
        except httpx.HTTPError as err:
            may_run = isinstance(err, httpx.ReadTimeout)
            raise self._lost(err) from err
        except (NotTaken, PromptError):
            may_run = False
            raise
        finally:
            self.running -= 1
            if may_run:
                self._abort_later(rid)

    async def _read(self, response: httpx.Response) -> AsyncGenerator[News]:
        info = self.info
        assert info is not None, "nothing is sent to a worker that has not said what it is"
        reader = Reader(is_delta=info.is_delta, is_raw=info.has_raw_logps)
        cutter, is_first = EventCutter(), True
        async for chunk in response.aiter_bytes():
            for event in cutter.feed(chunk):
                check_event(event, self._engine, is_first=is_first)
                news = reader.read(event)
                if news.finish is not None:
                    check_finish(news.finish, self._engine, is_first=is_first)
                is_first = is_first and not news.ids
                yield news
            if cutter.is_done:
                return
        raise EngineClosed(f"{self.url}: the stream broke off before its end")

    async def ask(self, body: Mapping[str, Any]) -> tuple[News, dict[str, Any]]:
        """The only reply of a request that draws at most one token: news, and `meta_info`.

        Raises:
            NotTaken: It may be sent again.
            PromptError: The worker refuses the request.
            EngineClosed: The worker failed or fell silent.
        """
        reply = await self.post("/generate", {**body, "rid": uuid.uuid4().hex})
        news = Reader(is_delta=False).read(reply)
        check_finish(news.finish or {}, self._engine, is_first=True)
        return news, reply["meta_info"]

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """One call and its JSON reply.

        Raises:
            NotTaken: It may be sent again.
            PromptError: The worker refuses the request.
            EngineClosed: The worker failed or fell silent.
        """
        self.running += 1
        try:
            response = await self._client.post(f"{self.url}{path}", json=body)
            await self._check(response)
            return response.json()
        except httpx.HTTPError as err:
            raise self._lost(err) from err
        except ValueError as err:
            raise EngineClosed(f"{self.url}: the reply is no JSON") from err
        finally:
            self.running -= 1

    async def look(self) -> None:
        """See whether a worker that was alive still is, and how many requests wait there."""
        try:
            reply = await self._client.get(f"{self.url}/v1/loads", timeout=_HEALTH_TIMEOUT_S)
            if reply.status_code == 404:
                reply = await self._client.get(f"{self.url}/health", timeout=_HEALTH_TIMEOUT_S)
            elif reply.status_code == 200:
                loads = parsed(reply.content).get("loads") or ()
                self.waiting = sum(int(load.get("num_waiting_reqs", 0)) for load in loads)
            self.is_alive = reply.status_code < 500
        except (httpx.HTTPError, EngineClosed):
            self.is_alive = False

    async def revive(self, *, must_be_seeded: bool) -> bool:
        """See whether a worker that was gone is back, and can do what was declared.

        Its cache is empty then.
        """
        try:
            reply = await self._client.get(f"{self.url}/health", timeout=_HEALTH_TIMEOUT_S)
            if reply.status_code != 200:
                return False
            info = await asyncio.to_thread(discover, self.url, self._options)
        except (httpx.HTTPError, NotTaken, ModelLoadError):
            return False
        if not info.is_generation or (must_be_seeded and not info.is_seeded):
            log.warning("%s is back, but not as a generator with seeds; it is left out", self.url)
            return False
        if self.info is not None and info.model_path != self.info.model_path:
            log.warning("%s is back with %s; it is left out", self.url, info.model_path)
            return False
        if self.info is not None and info.algorithm != self.info.algorithm:
            log.warning("%s is back with %r; it is left out", self.url, info.algorithm)
            return False
        self.info, self.is_alive = info, True
        return True

    async def settle(self) -> None:
        """Wait until all aborts were sent."""
        while self._aborts:
            await asyncio.wait(self._aborts)

    def _abort_later(self, rid: str) -> None:
        """The connection's end alone stops a request only when the worker next looks at it."""
        task = asyncio.get_running_loop().create_task(self._abort(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _abort(self, rid: str) -> None:
        try:
            await self._client.post(f"{self.url}/abort_request", json={"rid": rid}, timeout=5.0)
        except httpx.HTTPError as err:
            log.debug("no abort of %s at %s: %s", rid, self.url, err)

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code >= 400:
            message = message_in(await response.aread())
            after = response.headers.get("Retry-After", "")
            seconds = float(after) if after.isdecimal() else None
            raise_for(response.status_code, message, self._engine, retry_after_s=seconds)

    def _lost(self, err: httpx.HTTPError) -> NotTaken | EngineClosed:
        """What a failed exchange means; the worker is left out until it is healthy again.

        Only what never reached it may be sent again: the request itself may have ended the worker.
        """
        self.is_alive = False
        what = f"{self.url}: {type(err).__name__}: {err}"
        if isinstance(err, httpx.ConnectError | httpx.ConnectTimeout):
            return NotTaken(what, is_gone=True)
        return EngineClosed(f"{what}: the worker of {self._engine!r} failed")
