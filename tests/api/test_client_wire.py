"""bough_client against a peer that breaks off, refuses and sends hostile text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from bough_client import AsyncBough, Bough, BoughReply, EventsDropped, RunEvent
from bough_client.events import EventReader, ServerEvent
from bough_client.reply import EventInStream
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.loadtests.peer import running_app

HEAD = {"id": "c", "created": 1, "model": "m"}
BOUGH = {
    "run_id": "run_1",
    "strategy": "ets",
    "resolved": "ets",
    "stop_reason": "done",
    "seed": 7,
    "score": 0.5,
    "cached": False,
    "spent": {"generated_tokens": 12, "not_yet_known": 1},
    "tree": {"nodes": 3},
    "candidates": [{"content": "four", "score": 0.5, "finish_reason": "stop"}],
    "ignored": ["user"],
    "from_a_newer_server": True,
}
NUM_EVENTS = 6


class Peer:
    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.resumed: list[str | None] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)
        self.app.get("/v1/strategies")(self.strategies)
        self.app.get("/v1/runs/{run_id}/tree")(self.tree)
        self.app.get("/v1/runs/{run_id}/events")(self.events)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] == "missing":
            error = {"message": "no", "type": "t", "param": "model", "code": "model_not_found"}
            return JSONResponse({"error": error}, 404)
        if body.get("stream"):
            return StreamingResponse(self.chunks(), media_type="text/event-stream")
        message = {"role": "assistant", "content": "four"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        whole = {**HEAD, "object": "chat.completion", "choices": [choice], "bough": BOUGH}
        return JSONResponse(whole)

    async def chunks(self) -> AsyncIterator[str]:
        event = {"event": {"number": 0, "kind": "grown", "branch": 0}}
        for extra, content in (({}, "fo"), ({"bough": event}, None), ({}, "ur"), ({}, None)):
            delta = {"index": 0, "delta": {"content": content}, "finish_reason": None}
            choices = [] if content is None else [delta]
            yield self.frame(
                {**HEAD, "object": "chat.completion.chunk", "choices": choices} | extra
            )
        last = {**HEAD, "object": "chat.completion.chunk", "choices": [], "bough": BOUGH}
        yield self.frame(last)
        yield "data: [DONE]\n\n"

    async def strategies(self) -> dict[str, Any]:
        ets = {"name": "ets", "description": "d", "params": {"type": "object"}, "requires": ["x"]}
        return {"object": "list", "data": [ets]}

    async def tree(self, run_id: str) -> Response:
        if run_id != "run 1?&%41":
            return JSONResponse({"error": {"code": "run_not_found", "message": run_id}}, 404)
        nodes = [{"id": 0, "parent": None, "state": "kept"}, {"id": 1, "parent": 0, "text": "a"}]
        return JSONResponse(
            {"run_id": run_id, "nodes": nodes, "chosen": [1], "stop_reason": "done"}
        )

    async def events(self, run_id: str, request: Request) -> Response:
        resumed = request.headers.get("Last-Event-ID")
        self.resumed.append(resumed)
        first = 0 if resumed is None else int(resumed) + 1
        return StreamingResponse(self.some(run_id, first), media_type="text/event-stream")

    async def some(self, run_id: str, first: int) -> AsyncIterator[str]:
        yield ": hello\n\n"
        if run_id == "stuck":
            return
        if run_id == "failing":
            yield 'event: error\ndata: {"error": {"message": "store gone"}}\n\n'
            return
        for number in range(first, NUM_EVENTS):
            if number == first + 2:
                raise ConnectionError("broken off on purpose")
            event = {"number": number, "kind": "grown", "text": "a\u2028b\N{DECIDUOUS TREE}"}
            yield f"id: {number}\n" + self.frame(event)
        yield "event: end\ndata: {}\n\n"

    @staticmethod
    def frame(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def url(peer: Peer) -> Iterator[str]:
    with running_app(peer.app) as base:
        yield f"{base}/v1"


@pytest.fixture
def client(url: str) -> Iterator[Bough]:
    with Bough(url, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncBough]:
    async with AsyncBough(url, max_retries=0) as opened:
        yield opened


MESSAGES: Any = [{"role": "user", "content": "2+2?"}]


def test_options_are_sent_beside_what_the_sdk_sends(client: Bough, peer: Peer) -> None:
    answer = client.complete(
        model="m",
        messages=MESSAGES,
        seed=7,
        bough={"strategy": "ets", "params": {"width": 4}, "return": {"candidates": 3}},
        extra_body={"top_k": 5},
    )
    assert answer.text == "four"
    assert isinstance(answer.bough, BoughReply)
    assert (answer.bough.run_id, answer.bough.score) == ("run_1", 0.5)
    assert answer.bough.spent.generated_tokens == 12
    assert answer.bough.candidates[0].content == "four"
    assert (answer.bough.model_extra or {})["from_a_newer_server"] is True
    (sent,) = peer.bodies
    assert sent["bough"] == {
        "strategy": "ets",
        "params": {"width": 4},
        "return": {"candidates": 3},
    }
    assert (sent["seed"], sent["top_k"]) == (7, 5)


def test_without_options_none_are_sent(client: Bough, peer: Peer) -> None:
    client.complete(model="m", messages=MESSAGES)
    assert "bough" not in peer.bodies[0]


def test_a_stream_gives_text_events_and_the_account(client: Bough) -> None:
    chunks = list(client.stream(model="m", messages=MESSAGES, bough={"strategy": "ets"}))
    assert "".join(chunk.text for chunk in chunks) == "four"
    events = [chunk.bough.event for chunk in chunks if isinstance(chunk.bough, EventInStream)]
    assert [(event.number, event.data) for event in events] == [(0, {"branch": 0})]
    assert isinstance(chunks[-1].bough, BoughReply)


async def test_the_async_client_does_the_same(async_client: AsyncBough, peer: Peer) -> None:
    answer = await async_client.complete(model="m", messages=MESSAGES, bough={"cache": False})
    assert (answer.text, answer.bough.resolved) == ("four", "ets")
    assert peer.bodies[0]["bough"] == {"cache": False}
    chunks = [chunk async for chunk in async_client.stream(model="m", messages=MESSAGES)]
    assert "".join(chunk.text for chunk in chunks) == "four"
    assert [one.name for one in await async_client.strategies()] == ["ets"]
    assert (await async_client.run_tree("run 1?&%41")).chosen == [1]
    events = [event async for event in async_client.run_events("r", after=1)]
    assert [event.number for event in events] == [2, 3, 4, 5]
    assert peer.resumed == ["1", "3"]
    with pytest.raises(EventsDropped, match="5 times in a row"):
        [event async for event in async_client.run_events("stuck")]
    with pytest.raises(EventsDropped, match="store gone"):
        [event async for event in async_client.run_events("failing")]


def test_refusals_are_the_sdks_errors(client: Bough) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.complete(model="missing", messages=MESSAGES)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.run_tree("other")


def test_strategies_and_trees_are_typed(client: Bough) -> None:
    (strategy,) = client.strategies()
    assert (strategy.name, strategy.params, strategy.requires) == ("ets", {"type": "object"}, ["x"])
    tree = client.run_tree("run 1?&%41")
    assert [(node.id, node.parent, node.text) for node in tree.nodes] == [
        (0, None, ""),
        (1, 0, "a"),
    ]


def test_events_go_on_after_broken_connections(client: Bough, peer: Peer) -> None:
    events = list(client.run_events("r"))
    assert [event.number for event in events] == list(range(NUM_EVENTS))
    assert events[0].data == {"text": "a\u2028b\N{DECIDUOUS TREE}"}
    assert peer.resumed == [None, "1", "3"]


def test_events_that_never_come_are_given_up(client: Bough, peer: Peer) -> None:
    with pytest.raises(EventsDropped, match="5 times in a row"):
        list(client.run_events("stuck"))
    assert len(peer.resumed) == 5
    with pytest.raises(EventsDropped, match="store gone"):
        list(client.run_events("failing"))


@given(st.lists(st.integers(0, 90), max_size=30))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = ': c\n\nid: 1\ndata: "\u2028"\r\n\r\nevent: end\rdata:1\rdata: 2\r\rdata: x\n'.encode()
    reader, found = EventReader(), []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for place, start in enumerate(edges[:-1]):
        found += reader.feed(stream[start : edges[place + 1]])
    assert found == [ServerEvent("", '"\u2028"'), ServerEvent("end", "1\n2")]


def test_an_events_own_fields_are_its_data() -> None:
    assert RunEvent.model_validate({"number": 3, "kind": "scored", "value": 1.0}).data == {
        "value": 1.0
    }
