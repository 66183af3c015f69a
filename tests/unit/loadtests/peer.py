"""A small server that speaks OpenAI's stream: what the driver is tested against."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

ANSWER = ("The ", "answer ", "is ", "4", ".")


def create_peer(seen: list[dict[str, Any]]) -> FastAPI:
    """The app; every body that arrives is put into `seen`."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "peer-model", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        seen.append(body)
        strategy = body["bough"]["strategy"]
        if strategy == "refused":
            error = {"message": "busy", "type": "overload", "param": None, "code": "overloaded"}
            return JSONResponse({"error": error}, status_code=429)
        return StreamingResponse(_chunks(strategy), media_type="text/event-stream")

    return app


async def _chunks(strategy: str) -> AsyncIterator[bytes]:
    yield b": ok\n\n"
    for piece in ANSWER:
        yield _event({"choices": [{"index": 0, "delta": {"content": piece}}]})
        if strategy == "endless":
            await asyncio.Event().wait()
    if strategy == "broken":
        yield _event({"error": {"message": "gone", "type": "server_error", "code": "engine_gone"}})
        return
    yield _event({"choices": [], "bough": {"run_id": "r", "stop_reason": "done"}})
    details = {"reasoning_tokens": 20}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 25,
        "completion_tokens_details": details,
    }
    yield _event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


@contextmanager
def running_peer(seen: list[dict[str, Any]]) -> Iterator[str]:
    """Its URL while the block runs."""
    with running_app(create_peer(seen)) as url:
        yield url


@contextmanager
def running_app(app: FastAPI) -> Iterator[str]:
    """An app's URL, on a free loopback port, while the block runs."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    is_up = threading.Event()
    startup = server.startup

    async def announce(**given: Any) -> None:
        await startup(**given)
        is_up.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert is_up.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
