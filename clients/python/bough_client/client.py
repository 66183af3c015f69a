"""`Bough` and `AsyncBough`: the openai SDK's clients with a bough server's own methods.

What these do not do: retry beyond what the SDK does, except that reading a run's events goes on
after a dropped connection from where it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final, cast
from urllib.parse import quote

from openai import AsyncOpenAI, AsyncStream, OpenAI, OpenAIError, Stream
from openai.types.chat import ChatCompletionMessageParam

from bough_client.events import EventReader, ServerEvent
from bough_client.options import BoughOptions
from bough_client.reply import Chunk, Completion, RunEvent, RunTree, Strategy

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"
MAX_DROPS: Final = 5
"""Connections in a row that may end without a new event before reading them gives up."""

Messages = Iterable[ChatCompletionMessageParam]


class EventsDropped(OpenAIError):
    """The events of a run stopped coming before its last one."""


class Bough(OpenAI):
    """A synchronous client.

    Args:
        base_url: The server's `/v1`.
        api_key: Sent as a bearer token; a server without authentication takes any.
        **openai: Everything else that `openai.OpenAI` takes.
    """

    def __init__(self, base_url: str = DEFAULT_URL, api_key: str = "unused", **openai: Any) -> None:
        super().__init__(base_url=base_url, api_key=api_key, **openai)

    def complete(
        self, *, model: str, messages: Messages, bough: BoughOptions | None = None, **openai: Any
    ) -> Completion:
        """One answer.

        Args:
            model: Its id; `MODEL:STRATEGY` names a strategy too.
            messages: The conversation.
            bough: Strategy, parameters, budget and what to return.
            **openai: Everything else that `chat.completions.create` takes, except `stream`.

        Raises:
            openai.APIError: What the server refused, or that it cannot be reached.
        """
        completion = self.chat.completions.create(
            model=model, messages=messages, stream=False, **_with_bough(openai, bough)
        )
        return Completion.model_validate(completion.to_dict())

    def stream(
        self, *, model: str, messages: Messages, bough: BoughOptions | None = None, **openai: Any
    ) -> Iterator[Chunk]:
        """One answer in chunks, as they are decided; closing the iterator cancels the run.

        Arguments and errors are those of `complete`.
        """
        chunks = self.chat.completions.create(
            model=model, messages=messages, stream=True, **_with_bough(openai, bough)
        )
        with cast("Stream[Any]", chunks) as opened:
            for chunk in opened:
                yield Chunk.model_validate(chunk.to_dict())

    def strategies(self) -> list[Strategy]:
        """The strategies that requests may name."""
        return _strategies(self.get("/strategies", cast_to=object))

    def run_tree(self, run_id: str) -> RunTree:
        """The tree of a run as it stands.

        Raises:
            openai.NotFoundError: No such run, or it was forgotten.
        """
        return RunTree.model_validate(self.get(_path(run_id, "tree"), cast_to=object))

    def run_events(self, run_id: str, after: int = -1) -> Iterator[RunEvent]:
        """The events of a run numbered above `after`, to its end, waiting for those to come.

        A dropped connection is opened again from the last event seen.

        Raises:
            openai.NotFoundError: No such run, or it was forgotten.
            EventsDropped: The server could not go on, or the connection ended MAX_DROPS times in a
                row without a new event.
            openai.APIConnectionError: The server cannot be reached.
        """
        drops = 0
        while drops < MAX_DROPS:
            seen = after
            for event in self._events_once(run_id, after):
                if event is None:
                    return
                after = event.number
                yield event
            drops = drops + 1 if after == seen else 0
        raise _dropped(run_id)

    def _events_once(self, run_id: str, after: int) -> Iterator[RunEvent | None]:
        """Events of one connection; None stands for the end that the server declared."""
        stream = self.get(
            _path(run_id, "events"),
            cast_to=object,
            stream=True,
            stream_cls=Stream[object],
            options=_resume(after),
        )
        reader = EventReader()
        with stream:
            try:
                for chunk in stream.response.iter_bytes():
                    yield from map(_run_event, reader.feed(chunk))
            except _transport_errors(stream.response):
                return


class AsyncBough(AsyncOpenAI):
    """An asynchronous client; arguments and methods are those of `Bough`."""

    def __init__(self, base_url: str = DEFAULT_URL, api_key: str = "unused", **openai: Any) -> None:
        super().__init__(base_url=base_url, api_key=api_key, **openai)

    async def complete(
        self, *, model: str, messages: Messages, bough: BoughOptions | None = None, **openai: Any
    ) -> Completion:
        """One answer; see `Bough.complete`."""
        completion = await self.chat.completions.create(
            model=model, messages=messages, stream=False, **_with_bough(openai, bough)
        )
        return Completion.model_validate(completion.to_dict())

    async def stream(
        self, *, model: str, messages: Messages, bough: BoughOptions | None = None, **openai: Any
    ) -> AsyncIterator[Chunk]:
        """One answer in chunks; see `Bough.stream`."""
        chunks = await self.chat.completions.create(
            model=model, messages=messages, stream=True, **_with_bough(openai, bough)
        )
        async with cast("AsyncStream[Any]", chunks) as opened:
            async for chunk in opened:
                yield Chunk.model_validate(chunk.to_dict())

    async def strategies(self) -> list[Strategy]:
        """The strategies that requests may name."""
        return _strategies(await self.get("/strategies", cast_to=object))

    async def run_tree(self, run_id: str) -> RunTree:
        """The tree of a run; see `Bough.run_tree`."""
        return RunTree.model_validate(await self.get(_path(run_id, "tree"), cast_to=object))

    async def run_events(self, run_id: str, after: int = -1) -> AsyncIterator[RunEvent]:
        """The events of a run; see `Bough.run_events`."""
        drops = 0
        while drops < MAX_DROPS:
            seen = after
            async for event in self._events_once(run_id, after):
                if event is None:
                    return
                after = event.number
                yield event
            drops = drops + 1 if after == seen else 0
        raise _dropped(run_id)

    async def _events_once(self, run_id: str, after: int) -> AsyncIterator[RunEvent | None]:
        stream = await self.get(
            _path(run_id, "events"),
            cast_to=object,
            stream=True,
            stream_cls=AsyncStream[object],
            options=_resume(after),
        )
        reader = EventReader()
        async with stream:
            try:
                async for chunk in stream.response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield _run_event(event)
            except _transport_errors(stream.response):
                return


def _with_bough(openai: Mapping[str, Any], bough: BoughOptions | None) -> dict[str, Any]:
    """The SDK's arguments with `bough` in the body, beside what `extra_body` holds already."""
    if bough is None:
        return dict(openai)
    return {**openai, "extra_body": {**(openai.get("extra_body") or {}), "bough": bough}}


def _strategies(reply: object) -> list[Strategy]:
    return [Strategy.model_validate(one) for one in cast("dict[str, Any]", reply)["data"]]


def _path(run_id: str, what: str) -> str:
    return f"/runs/{quote(run_id, safe='')}/{what}"


def _run_event(event: ServerEvent) -> RunEvent | None:
    if event.name == "end":
        return None
    if event.name == "error":
        raise EventsDropped(f"the server could not go on: {event.data}")
    return RunEvent.model_validate_json(event.data)


def _resume(after: int) -> Any:
    return {} if after < 0 else {"headers": {"Last-Event-ID": str(after)}}


def _transport_errors(response: Any) -> type[Exception]:
    """The errors of a broken connection, of whichever HTTP library this SDK was built on."""
    library = import_module(type(response).__module__.partition(".")[0])
    return cast("type[Exception]", library.TransportError)


def _dropped(run_id: str) -> EventsDropped:
    return EventsDropped(
        f"the events of run {run_id} ended {MAX_DROPS} times in a row without a new one"
    )
