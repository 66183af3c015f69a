"""Upstreams for tests, on loopback: a server in vLLM's manner over an engine, and one that fails.

`create_upstream` answers with a real engine's tokens and imitates what `vllm serve` does on the
wire: `/v1/completions`, `continue_final_message`, `include_stop_str_in_output`, running usage,
log-probabilities and its refusals. The same checks run on the real server in `tests/real_vllm`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from engines.base import Continuation, Engine, Finish, Prefix, Sampling, TokenIds
from engines.errors import ContextLengthExceeded
from tests.unit.loadtests.peer import running_app


@contextmanager
def upstream_over(make: Callable[[], Engine], owner: str = "vllm") -> Iterator[str]:
    """The base URL of a server in vLLM's manner."""
    with running_app(create_upstream(make, owner)) as url:
        yield f"{url}/v1"


def create_upstream(make: Callable[[], Engine], owner: str) -> FastAPI:
    """The server; it serves one model called ``m``."""
    engines: list[Engine] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engines.append(make())
        yield
        await engines.pop().aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        size = engines[0].info.context_tokens
        return {"data": [{"id": "m", "owned_by": owner, "max_model_len": size}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        ids = engines[0].render(
            body["messages"], continue_final=bool(body.get("continue_final_message"))
        )
        assert isinstance(ids, tuple)
        return await _answer(engines[0], ids, body, is_chat=True)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        ids = engines[0].encode(body["prompt"])
        return await _answer(engines[0], ids, body, is_chat=False)

    return app


async def _answer(
    engine: Engine, ids: TokenIds, body: dict[str, Any], *, is_chat: bool
) -> Response:
    if len(body.get("stop") or ()) > 4:
        return JSONResponse({"error": {"message": "body.stop: at most 4 items"}}, 400)
    limit = engine.info.context_tokens
    wanted = body.get("max_tokens") or 1
    if len(ids) + wanted > limit:
        return JSONResponse(_too_long(len(ids), wanted, limit), 400)
    try:
        prefix = await engine.open(ids)
    except ContextLengthExceeded:
        return JSONResponse(_too_long(len(ids), wanted, limit), 400)
    return StreamingResponse(
        _events(engine, prefix, body, is_chat=is_chat), media_type="text/event-stream"
    )


def _too_long(prompt: int, wanted: int, limit: int) -> dict[str, Any]:
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested {wanted} "
        f"output tokens and your prompt contains {prompt} input tokens, for a total of "
        f"{prompt + wanted} tokens. Please reduce the length of the input prompt or the number of "
        "requested output tokens."
    )
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


async def _events(
    engine: Engine, prefix: Prefix, body: dict[str, Any], *, is_chat: bool
) -> AsyncIterator[bytes]:
    logprobs = body.get("top_logprobs") if is_chat else body.get("logprobs")
    stopping = "boundaries" if body.get("include_stop_str_in_output") else "stop"
    how = Sampling(
        temperature=body.get("temperature", 1.0),
        max_tokens=body.get("max_tokens"),
        **{stopping: tuple(body.get("stop") or ())},
        logprobs=logprobs if body.get("logprobs") not in (None, False) else None,
    )
    writer = _Writer(engine, body, len(prefix.token_ids), is_chat=is_chat)
    try:
        stream = engine.sample(prefix, how, seeds=[body.get("seed", 0)])
        async with aclosing(stream) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Continuation):
                    item.prefix.release()
                    if not writer.is_done:
                        is_cut = item.finish in (Finish.LENGTH, Finish.CONTEXT)
                        yield writer.chunk("", (), finish="length" if is_cut else "stop")
                    continue
                if writer.is_done:
                    continue
                yield writer.gained(item)
                if writer.is_done:
                    break
    finally:
        prefix.release()
    yield writer.usage()
    yield b"data: [DONE]\n\n"


class _Writer:
    """Writes one answer's chunks, and cuts it at a stop string."""

    def __init__(
        self, engine: Engine, body: dict[str, Any], prompt_tokens: int, *, is_chat: bool
    ) -> None:
        self.engine, self.body, self.prompt_tokens = engine, body, prompt_tokens
        self.is_chat = is_chat
        self.text = ""
        self.num_tokens = 0
        self.is_done = False

    def gained(self, delta: Any) -> bytes:
        """The chunk for what an engine's child gained."""
        before = len(self.text)
        self.text += delta.text
        self.num_tokens += delta.num_tokens
        stops = self.body.get("stop") or ()
        hits = [(at + len(stop), stop) for stop in stops if (at := self.text.find(stop)) >= 0]
        rows = list(zip(delta.token_ids, delta.logps, delta.top_logps or (), strict=False))
        if not hits:
            return self.chunk(delta.text, rows)
        self.is_done = True  # the stop string is left in the text, what its last token has more not
        end, stop = min(hits)
        return self.chunk(self.text[before : max(before, end)], rows, finish="stop", reason=stop)

    def chunk(
        self, text: str, rows: Any, *, finish: str | None = None, reason: str | None = None
    ) -> bytes:
        """One event."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "stop_reason": reason}
        choice |= {"delta": {"content": text}} if self.is_chat else {"text": text}
        if rows:
            choice["logprobs"] = self._logprobs(rows)
        return _event({"choices": [choice], "usage": self._usage()})

    def usage(self) -> bytes:
        """The last event."""
        return _event({"choices": [], "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.num_tokens}

    def _logprobs(self, rows: Any) -> dict[str, Any]:
        if self.is_chat:
            return {
                "content": [
                    {
                        **self._named(token, logp),
                        "top_logprobs": [self._named(*one) for one in tops],
                    }
                    for token, logp, tops in rows
                ]
            }
        return {
            "tokens": [self.engine.decode((token,)) for token, _, _ in rows],
            "token_logprobs": [logp for _, logp, _ in rows],
            "top_logprobs": [
                {self.engine.decode((token,)): logp for token, logp in tops} for _, _, tops in rows
            ],
        }

    def _named(self, token: int, logp: float) -> dict[str, Any]:
        text = self.engine.decode((token,))
        return {"token": text, "logprob": logp, "bytes": list(text.encode())}


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


@dataclass
class Script:
    """What a failing upstream does, and what it has seen.

    Attributes:
        replies: One per request, in order, the last one again and again: a status and a body, or
            the events of a stream, or None for no answer at all. An event may be an exception,
            which breaks the connection.
        headers: Of replies that are a status.
        hangs: Whether streams go on in silence after their events.
        seen: Every request's body.
        keys: Every request's Authorization.
        gone: Set when a client went before its stream ended.
    """

    replies: list[Any]
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


class Broken(Exception):
    """Breaks a scripted stream off; uvicorn then closes the connection."""


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """The base URL of a server that does as it is told."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        script.seen.append(await request.json())
        script.keys.append(request.headers.get("authorization"))
        reply = script.replies.pop(0) if len(script.replies) > 1 else script.replies[0]
        if reply is None:
            await request.receive()  # until the client goes
            return Response()
        if isinstance(reply, tuple):
            status, said = reply
            return JSONResponse(said, status, headers=script.headers)
        return StreamingResponse(_told(script, reply), media_type="text/event-stream")

    with running_app(app) as url:
        yield f"{url}/v1"


async def _told(script: Script, events: list[Any]) -> AsyncIterator[bytes]:
    try:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event if isinstance(event, bytes) else _event(event)
        if script.hangs:
            await asyncio.Event().wait()
    except (asyncio.CancelledError, GeneratorExit):
        script.gone.set()
        raise


def says(text: str, finish: str | None = None) -> dict[str, Any]:
    """One chunk of a chat."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
