from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from server.sse import EventStream, comment, frame, merged


async def numbers(first: int, last: int, ended: list[int]) -> AsyncGenerator[int]:
    try:
        for number in range(first, last):
            yield number
            await asyncio.sleep(0)
    finally:
        ended.append(first)


def test_frames() -> None:
    assert comment("hi") == b": hi\n\n"
    assert frame("{}") == b"data: {}\n\n"
    assert frame("é", name="end", number=4) == "event: end\nid: 4\ndata: é\n\n".encode()


async def test_merged_gives_every_item_in_each_sources_order() -> None:
    ended: list[int] = []
    got = [n async for n in merged(numbers(0, 5, ended), numbers(10, 13, ended))]
    assert [n for n in got if n < 10] == [0, 1, 2, 3, 4]
    assert [n for n in got if n >= 10] == [10, 11, 12]
    assert sorted(ended) == [0, 10]


async def test_merged_raises_the_first_error_and_closes_the_rest() -> None:
    ended: list[int] = []

    async def broken() -> AsyncGenerator[int]:
        yield 7
        raise ValueError("broken")

    source = merged(broken(), numbers(0, 10**9, ended))
    with pytest.raises(ValueError, match="broken"):
        async for _ in source:
            pass
    assert ended == [0]


async def test_merged_closes_its_sources_when_it_is_closed() -> None:
    ended: list[int] = []
    source = merged(numbers(0, 10**9, ended), numbers(10, 10**9, ended))
    await anext(source)
    await source.aclose()
    assert sorted(ended) == [0, 10]


class Client:
    """The other end of one response."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.leaves_after: int | None = None

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.leaves_after is not None and len(self.sent) >= self.leaves_after:
            self.gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def stream(source: AsyncGenerator[bytes], ended: list[str]) -> EventStream:
    return EventStream(source, heartbeat_s=60, on_end=lambda: ended.append("stream"))


async def test_a_stream_begins_with_a_comment_and_keeps_frames_apart() -> None:
    ended: list[str] = []

    async def frames() -> AsyncGenerator[bytes]:
        yield frame("1")
        yield frame("2")

    client = Client()
    await stream(frames(), ended)({"type": "http"}, client.receive, client.send)
    bodies = [message["body"] for message in client.sent[1:]]
    assert bodies == [b": ok\n\n", b"data: 1\n\n", b"data: 2\n\n", b""]
    assert client.sent[-1]["more_body"] is False
    assert ended == ["stream"]


@pytest.mark.parametrize("leaves_after", [1, 2, 3, 10])
async def test_a_client_that_goes_closes_the_generator(leaves_after: int) -> None:
    began: list[str] = []
    ended: list[str] = []

    async def frames() -> AsyncGenerator[bytes]:
        began.append("generator")
        try:
            while True:
                yield frame("x")
                await asyncio.sleep(0)
        finally:
            ended.append("generator")

    client = Client()
    client.leaves_after = leaves_after
    await stream(frames(), ended)({"type": "http"}, client.receive, client.send)
    assert ended == [*began, "stream"]
    assert began or leaves_after <= 2
    assert client.sent[-1].get("more_body", True) is True


async def test_an_error_of_the_generator_reaches_the_server() -> None:
    ended: list[str] = []

    async def frames() -> AsyncGenerator[bytes]:
        yield frame("1")
        raise ValueError("broken")

    client = Client()
    with pytest.raises(ValueError, match="broken"):
        await stream(frames(), ended)({"type": "http"}, client.receive, client.send)
    assert ended == ["stream"]
