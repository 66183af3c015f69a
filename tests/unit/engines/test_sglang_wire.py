"""Bodies, streams and errors of SGLang as values."""

import json
import math
from typing import Any

import pytest

from engines.errors import EngineClosed, PromptError, UpstreamRefused
from engines.sglang_wire import (
    EventCutter,
    NotTaken,
    Reader,
    check_event,
    check_finish,
    message_in,
    raise_for,
    top_logps,
)


def body(ids: list[int], finish: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    logps = [[-0.5 * token, token, None] for token in ids]
    return {
        "text": "",
        "output_ids": ids,
        "meta_info": {
            "finish_reason": finish,
            "prompt_tokens": 7,
            "cached_tokens": 3,
            "output_token_logprobs": logps,
            **meta,
        },
    }


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_cut_at_blank_lines_only(size: int) -> None:
    values = [{"text": "line\u2028sep \x85 \x0c\r\n\n"}, {"text": "é"}]
    stream = b"".join(map(event, values)) + b"data: [DONE]\n\n"
    cutter = EventCutter()
    found = []
    for start in range(0, len(stream), size):
        assert not cutter.is_done
        found += cutter.feed(stream[start : start + size])
    assert found == values
    assert cutter.is_done


def test_an_event_that_is_no_object_is_a_failure() -> None:
    for wrong in (b"data: [1]\n\n", b"data: {\n\n"):
        with pytest.raises(EngineClosed):
            EventCutter().feed(wrong)


def test_cumulative_bodies_are_read_from_where_they_were_left() -> None:
    reader = Reader(is_delta=False)
    states = [[1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]
    news = [reader.read(body(ids)) for ids in states]
    assert [one.ids for one in news] == [(1,), (2, 3), (), (4,)]
    assert [one.logps for one in news] == [(-0.5,), (-1.0, -1.5), (), (-2.0,)]
    assert (news[0].prompt_tokens, news[0].cached_tokens) == (7, 3)


def test_deltas_are_read_whole() -> None:
    reader = Reader(is_delta=True)
    tops = [[[-0.1, 8, None], [-2.0, 9, None]]]
    first = reader.read(body([1], output_top_logprobs=tops))
    second = reader.read(body([2, 3], {"type": "length", "length": 3}))
    assert (first.ids, second.ids) == ((1,), (2, 3))
    assert first.tops == (((8, -0.1), (9, -2.0)),)
    assert second.finish == {"type": "length", "length": 3}


def test_what_is_no_reply_is_a_failure() -> None:
    for wrong in ({}, {"meta_info": {}}, {"output_ids": None, "meta_info": None}):
        with pytest.raises(EngineClosed):
            Reader(is_delta=False).read(wrong)


def test_impossible_tokens_have_minus_infinity() -> None:
    assert top_logps([[None, 5, None]]) == ((5, -math.inf),)
    assert top_logps(None) == ()


@pytest.mark.parametrize(
    "content",
    [
        b'{"error": {"message": "too long"}}',
        b'{"error": "too long"}',
        b'{"object": "error", "message": "too long", "code": 400}',
        b"too long",
    ],
)
def test_messages_are_found_in_every_shape(content: bytes) -> None:
    assert message_in(content) == "too long"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, PromptError),
        (422, PromptError),
        (401, UpstreamRefused),
        (404, UpstreamRefused),
        (429, NotTaken),
        (503, NotTaken),
        (500, EngineClosed),
        (502, EngineClosed),
    ],
)
def test_a_status_means(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"{status}: why"):
        raise_for(status, "why", "model")


def test_what_was_drawn_is_not_asked_for_again() -> None:
    with pytest.raises(EngineClosed):
        raise_for(503, "why", "model", is_first=False)


def test_errors_inside_a_stream_have_a_code() -> None:
    with pytest.raises(PromptError):
        check_event({"error": {"message": "no", "code": 400}}, "model", is_first=True)
    with pytest.raises(NotTaken):
        check_event({"error": {"message": "full", "code": 503}}, "model", is_first=True)
    check_event(body([1]), "model", is_first=True)


def test_an_abort_with_a_status_is_an_error_and_one_without_is_none() -> None:
    refused = {"type": "abort", "message": "no grammar", "status_code": 400}
    with pytest.raises(PromptError, match="no grammar"):
        check_finish(refused, "model", is_first=True)
    check_finish({"type": "abort", "message": "aborted"}, "model", is_first=True)
