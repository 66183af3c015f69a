"""One streamed chat completion, timed as it arrives.

Speaks the wire and nothing else. Every chunk is stamped when its bytes come out of the socket; the
bytes are cut into server-sent events here, because a reader that buffers would falsify the times.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtests.measure import Record

_LINE_END = re.compile(r"\r\n|\n|\r")


class EventReader:
    """Cuts bytes, however they are split, into the data of server-sent events.

    Comments and fields other than `data` are skipped. Event streams end lines with LF, CR or CRLF.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Data of the events that end in `chunk`."""
        self._rest += self._decode(chunk)
        start = 0
        while (end := _LINE_END.search(self._rest, start)) is not None:
            if end.group() == "\r" and end.end() == len(self._rest):
                break  # the LF of a CRLF may still be on its way
            line = self._rest[start : end.start()]
            start = end.end()
            if line:
                self._take(line)
            elif self._data:
                yield "\n".join(self._data)
                self._data.clear()
        self._rest = self._rest[start:]

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))


@dataclass(frozen=True)
class Asked:
    """A request before it is sent."""

    index: int
    strategy: str
    scheduled_s: float
    body: dict[str, Any]


@dataclass
class Exchange:
    """What is known so far of one request; `record` says it at any moment.

    Args:
        asked: What is sent.
        now: Seconds since the run's start.
    """

    asked: Asked
    now: Callable[[], float]
    sent_s: float | None = None
    ended_s: float | None = None
    status: int | None = None
    code: str | None = None
    is_whole: bool = False
    text_times_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    bough: dict[str, Any] = field(default_factory=dict)

    async def run(self, client: httpx.AsyncClient) -> None:
        """Send it and read the reply to its end; failures are kept, not raised."""
        self.sent_s = self.now()
        try:
            async with client.stream("POST", "/v1/chat/completions", json=self.asked.body) as reply:
                self.status = reply.status_code
                if reply.status_code == 200:
                    await self._read(reply)
                else:
                    self.code = _code_of(await reply.aread())
        except httpx.HTTPError as err:
            self.code = self.code or type(err).__name__
        self.ended_s = self.now()
        if not self.is_whole:
            self.code = self.code or "truncated"

    def record(self) -> Record:
        """The request as it stands: incomplete as long as it has not ended."""
        details = self.usage.get("completion_tokens_details") or {}
        generated = self.usage.get("completion_tokens")
        ended = self.ended_s is not None
        return Record(
            index=self.asked.index,
            strategy=self.asked.strategy,
            scheduled_s=self.asked.scheduled_s,
            sent_s=self.asked.scheduled_s if self.sent_s is None else self.sent_s,
            ended_s=self.ended_s,
            text_times_s=tuple(self.text_times_s),
            outcome=("ok" if self.is_whole and not self.code else "error")
            if ended
            else "incomplete",
            status=self.status,
            code=self.code,
            answer_tokens=None
            if generated is None
            else generated - (details.get("reasoning_tokens") or 0),
            generated_tokens=generated,
            prompt_tokens=self.usage.get("prompt_tokens"),
            run_id=self.bough.get("run_id"),
            stop_reason=self.bough.get("stop_reason"),
        )

    async def _read(self, reply: httpx.Response) -> None:
        events = EventReader()
        async for chunk in reply.aiter_bytes():
            came_s = self.now()
            for data in events.feed(chunk):
                if data == "[DONE]":
                    self.is_whole = True
                else:
                    self._take(data, came_s)

    def _take(self, data: str, came_s: float) -> None:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self.code = "not_json"
            return
        if chunk.get("error"):
            self.code = _code_in(chunk["error"])
        choices = chunk.get("choices") or []
        if any((choice.get("delta") or {}).get("content") for choice in choices):
            self.text_times_s.append(came_s)
        self.usage = chunk.get("usage") or self.usage
        self.bough = chunk.get("bough") or self.bough


def _code_of(body: bytes) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        return "not_json"
    return _code_in(parsed.get("error") if isinstance(parsed, dict) else None)


def _code_in(error: object) -> str:
    if not isinstance(error, dict):
        return "unknown"
    return str(error.get("code") or error.get("type") or "unknown")[:100]
