"""A plain client of SGLang's HTTP protocol, for tests of the protocol itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Wire:
    """One server.

    Attributes:
        client: Based at its address.
        is_delta: How it was told to stream.
        is_raw: Whether it reports logps at temperature 1.
        vocab_size: Of its model.
    """

    client: httpx.AsyncClient
    is_delta: bool
    is_raw: bool
    vocab_size: int

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def ask(self, **body: Any) -> Any:
        reply = await self.post("/generate", **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def refusal(self, **body: Any) -> Any:
        reply = await self.post("/generate", **body)
        assert reply.status_code == 400, reply.text
        return reply.json()

    async def events(self, **body: Any) -> list[Any]:
        async with self.streaming(**body) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def streaming(self, **body: Any) -> AsyncIterator[AsyncIterator[Any]]:
        """Events up to [DONE], which must come."""
        asked = {**body, "stream": True}
        async with self.client.stream("POST", "/generate", json=asked) as response:
            assert response.status_code == 200

            async def events() -> AsyncIterator[Any]:
                buffer = b""
                async for chunk in response.aiter_bytes():
                    *whole, buffer = (buffer + chunk).split(b"\n\n")
                    for event in whole:
                        assert event.startswith(b"data: ")
                        if event == b"data: [DONE]":
                            return
                        yield json.loads(event[6:])
                raise AssertionError("the stream ended without [DONE]")

            yield events()
