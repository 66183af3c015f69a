from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.exchange import Asked, EventReader, Exchange

STREAM = (
    ": first comment\r\n\r\n"
    'data: {"a": "\N{DECIDUOUS TREE}"}\r\n\r\n'
    "event: error\nid: 3\ndata:one\ndata: two\n\n"
    ": keep-alive\n\n"
    "data:  spaced\r\r"
    "retry: 10\n\n"
    "data: [DONE]\n\n"
    "data: never ended\n"
).encode()
EVENTS = ['{"a": "\N{DECIDUOUS TREE}"}', "one\ntwo", " spaced", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reader, found = EventReader(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        found += reader.feed(STREAM[start:end])
    assert found == EVENTS


def test_an_event_is_out_as_soon_as_its_blank_line_is() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: x\n")) == []
    assert list(reader.feed(b"\n")) == ["x"]


def test_bytes_that_are_no_text_do_not_end_the_stream() -> None:
    assert list(EventReader().feed(b"data: \xff\n\n")) == ["\N{REPLACEMENT CHARACTER}"]


async def exchange_over(status: int, *chunks: bytes, fails: bool = False) -> Exchange:
    """One exchange with a server that sends these chunks; its clock ticks once a look."""

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for chunk in chunks:
                yield chunk
            if fails:
                raise httpx.ReadError("connection reset")

    ticks: Iterator[int] = iter(range(1000))
    exchange = Exchange(Asked(3, "ets", 0.0, {"model": "m"}), lambda: float(next(ticks)))
    transport = httpx.MockTransport(lambda request: httpx.Response(status, stream=Body()))
    async with httpx.AsyncClient(transport=transport, base_url="http://peer") as client:
        await exchange.run(client)
    return exchange


def text(piece: str) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % piece.encode()


async def test_an_answer_is_timed_from_its_first_text() -> None:
    exchange = await exchange_over(
        200,
        b": ok\n\n",
        b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n',
        text("a"),
        text("b") + text("c"),
        b'data: {"choices": [], "bough": {"run_id": "r", "stop_reason": "done"}}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 30, '
        b'"completion_tokens_details": {"reasoning_tokens": 27}}}\n\n',
        b"data: [DONE]\n\n",
    )
    record = exchange.record()
    assert record.outcome == "ok"
    assert record.sent_s == 0
    assert record.text_times_s == (3, 4, 4)  # the 3rd, 4th and 4th look at the clock after sending
    assert record.ended_s == 8
    assert (record.prompt_tokens, record.answer_tokens, record.generated_tokens) == (5, 3, 30)
    assert (record.run_id, record.stop_reason) == ("r", "done")
    assert (record.index, record.strategy, record.status, record.code) == (3, "ets", 200, None)


@pytest.mark.parametrize(
    ("status", "chunks", "code"),
    [
        (429, [b'{"error": {"code": "overloaded", "type": "x"}}'], "overloaded"),
        (503, [b'{"error": {"code": null, "type": "gone"}}'], "gone"),
        (500, [b"<html>"], "not_json"),
        (500, [b"[]"], "unknown"),
        (200, [text("a"), b'data: {"error": {"code": "engine_gone"}}\n\n'], "engine_gone"),
        (
            200,
            [b'data: {"error": {"code": "engine_gone"}}\n\n', b"data: [DONE]\n\n"],
            "engine_gone",
        ),
        (200, [text("a")], "truncated"),
        (200, [b"data: {oops\n\n", b"data: [DONE]\n\n"], "not_json"),
        (200, [b"data: 7\n\n"], "not_json"),
    ],
)
async def test_failures_are_errors_with_their_code(
    status: int, chunks: list[bytes], code: str
) -> None:
    record = (await exchange_over(status, *chunks)).record()
    assert (record.outcome, record.status, record.code) == ("error", status, code)


async def test_a_broken_connection_is_an_error_not_an_exception() -> None:
    record = (await exchange_over(200, text("a"), fails=True)).record()
    assert (record.outcome, record.code, len(record.text_times_s)) == ("error", "ReadError", 1)


def test_a_request_that_was_never_sent_is_incomplete() -> None:
    record = Exchange(Asked(0, "single", 2.0, {}), lambda: 0.0).record()
    assert (record.outcome, record.sent_s, record.ended_s) == ("incomplete", 2.0, None)
