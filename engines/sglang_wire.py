"""SGLang's /generate on the wire: event streams, bodies and errors as plain values.

A stream is cumulative by default: each event repeats all ids and logprobs so far. With
``--incremental-streaming-output`` each event holds only what is new. Nothing in an event says
which; `Reader` is told. Log-probabilities arrive as ``[logp, id, text]``, the first of a prompt as
null. Nothing here sends anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engines.base import TokenIds, TopLogps
from engines.errors import EngineClosed, PromptError, UpstreamRefused

_MAX_QUOTED: Final = 500
_BUSY: Final = (429, 503)
_TURNED_AWAY: Final = (401, 403, 404)


class NotTaken(Exception):
    """The worker did not begin the request; it may be sent again, there or elsewhere.

    Args:
        why: What the worker said.
        retry_after_s: How long it asked to be left alone; None where it did not say.
        is_gone: Whether nobody answered at all.
    """

    def __init__(
        self, why: str, retry_after_s: float | None = None, *, is_gone: bool = False
    ) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        self.is_gone = is_gone


@dataclass(frozen=True)
class News:
    """What one event adds.

    Attributes:
        ids: New tokens.
        logps: One per new token, where logprobs were asked for.
        tops: Alternatives per new token, where they were asked for.
        finish: SGLang's finish reason; None while the request runs.
        prompt_tokens: Tokens of the request's prompt.
        cached_tokens: Of those, found in the worker's cache.
        is_raw: Whether the worker reports logps at temperature 1.
    """

    ids: TokenIds
    logps: tuple[float, ...]
    tops: tuple[TopLogps, ...]
    finish: Mapping[str, Any] | None
    prompt_tokens: int
    cached_tokens: int
    is_raw: bool


class Reader:
    """Turns the bodies of one request into news.

    Cumulative bodies may repeat themselves (diffusion models do); what was seen is left out.

    Args:
        is_delta: Whether the worker streams deltas.
        is_raw: Whether it reports logps at temperature 1.
    """

    def __init__(self, *, is_delta: bool, is_raw: bool = False) -> None:
        self._is_delta = is_delta
        self._is_raw = is_raw
        self._seen = 0

    def read(self, body: Mapping[str, Any]) -> News:
        """What `body` adds.

        Raises:
            EngineClosed: It is no reply of /generate.
        """
        start = 0 if self._is_delta else self._seen
        try:
            meta = body["meta_info"]
            ids = tuple(body["output_ids"][start:])
            logps = tuple(entry[0] for entry in meta.get("output_token_logprobs") or ())
            tops = tuple(map(top_logps, meta.get("output_top_logprobs") or ()))
            news = News(
                ids=ids,
                logps=logps[start : start + len(ids)],
                tops=tops[start : start + len(ids)],
                finish=meta["finish_reason"],
                prompt_tokens=meta["prompt_tokens"],
                cached_tokens=meta.get("cached_tokens") or 0,
                is_raw=self._is_raw,
            )
        except (KeyError, TypeError, IndexError) as err:
            raise EngineClosed(f"SGLang's reply cannot be read: {err!r}") from err
        self._seen += len(ids)
        return news


def top_logps(entries: Sequence[Sequence[Any]] | None) -> TopLogps:
    """Alternatives of one position, likeliest first; none for a prompt's first token."""
    return tuple(
        (entry[1], -math.inf if entry[0] is None else float(entry[0])) for entry in entries or ()
    )


class EventCutter:
    """Cuts a stream of bytes into its JSON events.

    Cut at blank lines of bytes and nowhere else: the text inside an event may hold U+2028, U+0085
    and others that text readers take for line ends.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self.is_done = False

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Events that `chunk` completes; `is_done` once their last was [DONE].

        Raises:
            EngineClosed: An event is no JSON.
        """
        *whole, self._buffer = (self._buffer + chunk).split(b"\n\n")
        found = []
        for event in whole:
            data = event.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                self.is_done = True
            elif data:
                found.append(parsed(data))
        return found


def parsed(data: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        EngineClosed: It is none.
    """
    try:
        body = json.loads(data)
    except ValueError as err:
        raise EngineClosed(f"SGLang sent what is no JSON: {data[:80]!r}") from err
    if not isinstance(body, dict):
        raise EngineClosed(f"SGLang sent a JSON {type(body).__name__} where an object was due")
    return body


def check_event(event: Mapping[str, Any], engine: str, *, is_first: bool) -> None:
    """Raise what an error inside a stream means; such a stream has HTTP status 200.

    Raises:
        NotTaken: The worker is too busy, and nothing was drawn yet.
        EngineError: Any other error.
    """
    if "error" in event:
        code = event["error"].get("code") if isinstance(event["error"], Mapping) else None
        status = code if isinstance(code, int) else 500
        raise_for(status, message_of(event), engine, is_first=is_first)


def check_finish(finish: Mapping[str, Any], engine: str, *, is_first: bool) -> None:
    """Raise what an abort with a status means; one without is somebody's /abort_request.

    Raises:
        NotTaken: As in `check_event`.
        EngineError: Likewise.
    """
    if finish.get("type") == "abort" and isinstance(finish.get("status_code"), int):
        message = str(finish.get("message") or "aborted")
        raise_for(finish["status_code"], message, engine, is_first=is_first)


def raise_for(
    status: int,
    message: str,
    engine: str,
    *,
    is_first: bool = True,
    retry_after_s: float | None = None,
) -> None:
    """Raise what an HTTP status of a worker means; nothing for a success.

    Args:
        status: HTTP status, or a code in a stream.
        message: SGLang's own words.
        engine: The model id, for the message.
        is_first: Whether nothing was drawn yet.
        retry_after_s: The header of that name.

    Raises:
        NotTaken: 429 or 503 before the first token.
        UpstreamRefused: The key or the address is wrong.
        PromptError: Any other 4xx: the request is wrong.
        EngineClosed: Everything else.
    """
    if status < 400:
        return
    text = f"SGLang says {status}: {message[:_MAX_QUOTED]}"
    if status in _BUSY and is_first:
        raise NotTaken(text, retry_after_s)
    if status in _TURNED_AWAY:
        raise UpstreamRefused(engine, text)
    if 400 <= status < 500 and status not in _BUSY:
        raise PromptError(text)
    raise EngineClosed(text)


def message_of(body: Mapping[str, Any]) -> str:
    """The message in any of SGLang's error shapes."""
    error = body.get("error", body.get("message"))
    if isinstance(error, Mapping):
        error = error.get("message")
    return str(error) if error else json.dumps(body)[:_MAX_QUOTED]


def message_in(content: bytes) -> str:
    """The message in an error's body, whatever that is."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, Mapping):
        return message_of(body)
    return content[:_MAX_QUOTED].decode("utf-8", "replace")
