"""Apps for tests: served in this process, spoken to by real clients or message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from server.app import create_app
from server.services import Services
from server.settings import Settings

CHAT = "/v1/chat/completions"
HELLO = "2+2\nis 4\nso 4"


def echo_settings(**more: Any) -> Settings:
    """One echo model judged by a constant, and a verifier beside it."""
    values: dict[str, Any] = {
        "models": {"echo": {"engine": {"kind": "echo"}, "reward_model": "constant"}},
        "reward_models": {"constant": {"kind": "constant"}, "verifier": {"kind": "verifier"}},
    }
    return Settings(**{**values, **more})


def noisy_settings(**more: Any) -> Settings:
    """An echo model that really draws: any byte, more or less likely."""
    options = {"margin": 4.0, "max_step_tokens": 8}
    model = {"engine": {"kind": "echo", "options": options}, "reward_model": "constant"}
    return echo_settings(models={"echo": model}, **more)


def diffusion_settings(directory: Path) -> Settings:
    """A diffusion model of short texts beside an echo; equal answers may be cached."""
    engine = {"kind": "diffusion", "model": str(directory), "options": {"length": 8}}
    model = {"engine": engine, "reward_model": "verifier"}
    echo = {"engine": {"kind": "echo"}, "reward_model": "constant"}
    return echo_settings(models={"tiny": model, "echo": echo}, cache={"responses": True})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[FastAPI]:
    """An app between its lifespan's beginning and end."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app
        services: Services = app.state.services
        assert services.admission.running == services.admission.waiting == 0
        assert services.runs == {}


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client in this process; it sees unexpected exceptions as the 500 they become."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://bough")


def body(text: str = HELLO, **fields: Any) -> dict[str, Any]:
    """A chat completion request to the echo model."""
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


def chunks_of(text: str) -> list[dict[str, Any]]:
    """The JSON of every data frame of a finished stream."""
    frames = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(frame) for frame in frames if frame != "[DONE]"]


def content_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What the deltas of one answer add up to."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice["delta"] for choice in choices if choice["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)


async def claimed_pages(app: FastAPI) -> int:
    """Pages claimed by anybody, as /metrics tells it."""
    async with client_of(app) as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if 'state="claimed"' in line]
    assert lines
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


class Exchange:
    """One request, spoken in ASGI messages, so that a test decides when the client goes."""

    def __init__(
        self,
        app: FastAPI,
        path: str,
        sent: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        is_whole: bool = True,
    ) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        data = b"" if sent is None else json.dumps(sent).encode()
        self._inbox.put_nowait({"type": "http.request", "body": data, "more_body": not is_whole})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET" if sent is None else "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "server": ("bough", 80),
            "client": ("test", 1),
            "state": {},
        }
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self._outbox.put))

    async def message(self) -> dict[str, Any]:
        """The next message of the response."""
        return await asyncio.wait_for(self._outbox.get(), 20)

    async def frame(self) -> str:
        """The next part of the body that is no heartbeat."""
        while True:
            message = await self.message()
            assert message["type"] == "http.response.body"
            text = str(message["body"].decode())
            if text != ": keep-alive\n\n":
                return text

    async def leave(self) -> None:
        """The client closes the connection; returns when the server is done with it."""
        self._inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(self.task, 20)
