"""Server-sent events of one response, cut from its bytes.

The SDK's own reader is for chunks of chat completions; a run's events have names and numbers.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r")


class ServerEvent(NamedTuple):
    """One event; `name` is empty where the server gave none."""

    name: str
    data: str


class EventReader:
    """Turns bytes, however they are split, into events; comments and other fields are skipped."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that end in `chunk`."""
        self._rest += self._decode(chunk)
        start = 0
        while (end := _LINE_END.search(self._rest, start)) is not None:
            if end.group() == "\r" and end.end() == len(self._rest):
                break  # the LF of a CRLF may still be on its way
            line = self._rest[start : end.start()]
            start = end.end()
            if line:
                self._take(line)
                continue
            if self._data:
                yield ServerEvent(self._name, "\n".join(self._data))
            self._name = ""
            self._data.clear()
        self._rest = self._rest[start:]

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
