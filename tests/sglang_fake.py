"""SGLang's HTTP protocol without SGLang: a server on a loopback port, in a thread.

It behaves as version 0.5.23 was seen to, where `tests/contract/sglang_protocol.py` says so; that
suite runs on the real server too, so the two cannot drift apart. It draws from a distribution of
its own (`tests.sglang_fake_model`), keeps a true token trie, and compiles no grammar but regular
expressions. `FakeServer` can be told to fail, and to die.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from engines.sglang_discovery import SAMPLED
from tests.sglang_fake_model import (
    BLOCK,
    EOS,
    VOCAB_SIZE,
    TokenTrie,
    draw,
    listed,
    logps_after,
    tokenizer,
    top,
    uniform_of,
    write_fake_model,
)
from tests.sglang_fake_request import (
    DEFAULTS,
    Live,
    Node,
    Refused,
    check_params,
    drop_node,
    event_of,
    is_fatal,
    item_of,
    reward_of,
)


@dataclass(frozen=True)
class FakeOptions:
    """How the server was started.

    Attributes:
        model_path: What /model_info says.
        is_delta: --incremental-streaming-output.
        is_seeded: --enable-deterministic-inference.
        is_raw: SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment.
        is_embedding: --is-embedding: it judges and does not generate.
        has_priority: --enable-priority-scheduling.
        context_tokens: Of the model.
        token_s: Seconds per token.
        repeats: Cumulative events come twice, as those of diffusion models.
        algorithm: --dllm-algorithm: it denoises blocks.
    """

    model_path: str = ""
    is_delta: bool = False
    is_seeded: bool = False
    is_raw: bool = False
    is_embedding: bool = False
    has_priority: bool = False
    context_tokens: int = 192
    token_s: float = 0.0
    repeats: bool = False
    algorithm: str = ""

    @property
    def max_req_input_len(self) -> int:
        return self.context_tokens - 6 - (BLOCK if self.algorithm else 0)


class Fake:
    """The server's state and its routes; lives on the event loop of the server's thread.

    Tests read `requests` and `aborted`, and put replies into `refusals` (whole responses) and
    `broken` (events that a stream begins with).
    """

    def __init__(self, options: FakeOptions) -> None:
        self.options = options
        self.tries: dict[str, TokenTrie] = {}
        self.live: dict[str, Live] = {}
        self.sessions: dict[str, dict[str, Node]] = {}
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.refusals: list[Callable[[], Response]] = []
        self.broken: list[dict[str, Any]] = []
        self.die: Callable[[], None] = lambda: None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_idle = asyncio.Event()
        self.is_idle.set()
        self._tokenizer = tokenizer()
        self._entropy = random.Random(20_26)
        table: list[tuple[str, str, Any]] = [
            ("POST", "/generate", self.generate),
            ("POST", "/classify", self.classify),
            ("POST", "/abort_request", self.abort_request),
            ("POST", "/flush_cache", self.flush),
            ("POST", "/open_session", self.open_session),
            ("POST", "/close_session", self.close_session),
            ("GET", "/model_info", self.model_info),
            ("GET", "/server_info", self.server_info),
            ("GET", "/v1/loads", self.loads),
            ("GET", "/health", self.health),
        ]
        self.app = Starlette(
            routes=[Route(path, call, methods=[method]) for method, path, call in table]
        )

    # routes

    async def generate(self, request: Request) -> Response:
        if self.options.is_embedding:
            self.die()
        if self.refusals:
            return self.refusals.pop(0)()
        body = json.loads(await request.body())
        self.requests.append(body)
        try:
            batch, is_list = self._batch(body)
        except Refused as err:
            return JSONResponse(err.body, err.status)
        if body.get("stream"):
            events = self._events(batch, is_list)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            for live in batch:
                self._admit(live)
            async for _ in self._advance(batch):
                if await request.is_disconnected():
                    break
        except Refused as err:
            return JSONResponse(err.body, err.status)
        finally:
            self._forget(batch)
        results = [self._body(live, 0, 0) for live in batch]
        return JSONResponse(results if is_list else results[0])

    async def classify(self, request: Request) -> Response:
        if self.refusals:
            return self.refusals.pop(0)()
        body = json.loads(await request.body())
        self.requests.append(body)
        given = body.get("text", body.get("input_ids"))
        if not self.options.is_embedding:
            message = "This model does not appear to be an embedding model by default."
            return JSONResponse({"error": {"message": message}}, 400)
        is_list = isinstance(given, list) and bool(given) and isinstance(given[0], list | str)
        items = given if is_list else [given]
        rows = [self._ids(item) for item in items]
        if any(len(ids) >= self.options.max_req_input_len for ids in rows):
            return JSONResponse({"error": {"message": "Input length exceeds the maximum"}}, 400)
        replies = []
        for ids in rows:
            meta = {
                "id": uuid.uuid4().hex,
                "finish_reason": {"type": "length", "length": 0},
                "prompt_tokens": len(ids),
            }
            replies.append({"embedding": [reward_of(ids)], "meta_info": meta})
        return JSONResponse(replies if is_list else replies[0])

    async def abort_request(self, request: Request) -> Response:
        body = json.loads(await request.body())
        rid = body.get("rid") or ""
        self.aborted.append(rid)
        if body.get("abort_all") or rid in self.live:  # one that is not live itself is dropped
            for live in list(self.live.values()):
                if body.get("abort_all") or live.rid.startswith(rid):
                    live.finish = {"type": "abort", "message": "Aborted by AbortReq."}
        return Response()

    async def flush(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(float(request.query_params.get("timeout", 0))):
                await self.is_idle.wait()
        except TimeoutError:
            return PlainTextResponse("Flush cache failed.", 400)
        self.tries.clear()
        return PlainTextResponse("Cache flushed.")

    async def open_session(self, request: Request) -> Response:
        name = json.loads(await request.body()).get("session_id") or uuid.uuid4().hex
        self.sessions[name] = {}
        return JSONResponse(name)

    async def close_session(self, request: Request) -> Response:
        self.sessions.pop(json.loads(await request.body())["session_id"], None)
        return Response()

    async def model_info(self, request: Request) -> Response:
        path, is_generation = self.options.model_path, not self.options.is_embedding
        return JSONResponse({"model_path": path, "is_generation": is_generation})

    async def server_info(self, request: Request) -> Response:
        options = self.options
        return JSONResponse(
            {
                "version": "0.5.23",
                "page_size": BLOCK if options.algorithm else 1,
                "dllm_algorithm": options.algorithm or None,
                "max_total_num_tokens": 8192,
                "max_req_input_len": options.max_req_input_len,
                "incremental_streaming_output": options.is_delta,
                "enable_deterministic_inference": options.is_seeded,
                "enable_priority_scheduling": options.has_priority,
                "schedule_low_priority_values_first": False,
            }
        )

    async def loads(self, request: Request) -> Response:
        running = {"num_running_reqs": len(self.live), "num_waiting_reqs": 0}
        return JSONResponse({"version": "0.5.23", "loads": [running]})

    async def health(self, request: Request) -> Response:
        return Response()

    # one request

    def _batch(self, body: dict[str, Any]) -> tuple[list[Live], bool]:
        """What a body asks for: items times n, in that order."""
        given = body.get("input_ids", body.get("text"))
        if given is None:
            raise Refused("Either text, input_ids or input_embeds should be provided.")
        if not given:
            raise Refused("input_ids cannot be empty.")
        is_list = isinstance(given, list) and isinstance(given[0], list | str)
        items = given if is_list else [given]
        batch = []
        for at, item in enumerate(items):
            params = item_of(body.get("sampling_params") or {}, at)
            unknown = next((key for key in params if key not in DEFAULTS), None)
            if unknown is not None:
                names = ", ".join(f"`{name}`" for name in DEFAULTS)
                raise Refused(f"unknown field `{unknown}`, expected one of {names}", is_plain=True)
            full = {**DEFAULTS, **params}
            rid = item_of(body.get("rid"), at)
            if isinstance(body.get("rid"), str) and is_list:
                rid = f"{rid}_{at}"
            own = {**body, "extra_key": self._cache_key(body, at)}
            for _ in range(full["n"]):
                name = rid if rid and full["n"] == 1 else uuid.uuid4().hex
                batch.append(Live(name, self._ids(item), full, own, len(batch)))
            if full["n"] > 1:  # the prompt is run once before its samples
                self._trie(batch[-1]).insert(batch[-1].ids)
        return batch, is_list or len(batch) > 1

    def _ids(self, item: Any) -> list[int]:
        if isinstance(item, str):
            return list(self._tokenizer.encode(item, add_special_tokens=False).ids)
        return list(item)

    def _cache_key(self, body: dict[str, Any], at: int) -> str:
        salt, extra = item_of(body.get("cache_salt"), at), item_of(body.get("extra_key"), at)
        return f"{salt or ''}/{extra or ''}"

    def _trie(self, live: Live) -> TokenTrie:
        return self.tries.setdefault(live.body["extra_key"], TokenTrie())

    def _admit(self, live: Live) -> None:
        """Refuse or begin a request; what the real server does not survive ends this one too."""
        params, options = live.params, self.options
        if any(token < 0 for token in live.ids) or is_fatal(live.body):
            self.die()
        check_params(params)
        self._join_session(live)
        if len(live.ids) >= options.max_req_input_len:
            raise Refused(
                f"Input length ({len(live.ids)} tokens) exceeds the maximum allowed length "
                f"({options.max_req_input_len} tokens). Use a shorter input."
            )
        if len(live.ids) + (params["max_new_tokens"] or 0) > options.context_tokens:
            raise Refused(
                "Requested token count exceeds the model's maximum context length of "
                f"{options.context_tokens} tokens."
            )
        for token in live.body.get("token_ids_logprob") or ():
            if not 0 <= token < VOCAB_SIZE:
                raise Refused(f"token_ids_logprob contains out-of-vocabulary token id {token}")
        live.cached = min(self._trie(live).match(live.ids), len(live.ids) - 1, live.start)
        self.live[live.rid] = live
        self.is_idle.clear()

    def _join_session(self, live: Live) -> None:
        asked = live.body.get("session_params")
        if not asked:
            return
        nodes = self.sessions.get(asked["id"])
        if nodes is None:
            raise Refused(f"Invalid request: session id {asked['id']} does not exist")
        parent = asked.get("rid")
        live.session = (asked["id"], parent)
        if parent is None:
            return
        if parent not in nodes:
            raise Refused("Invalid request session id")
        node = nodes[parent]
        if asked.get("replace"):
            for child in [rid for rid, one in nodes.items() if one.parent == parent]:
                drop_node(nodes, child)
        context = node.ids + ([] if asked.get("drop_previous_output") else node.output)
        offset = asked.get("offset")
        live.ids = context[: offset or None] + live.ids

    async def _advance(self, batch: list[Live]) -> AsyncIterator[Live]:
        """Draw in turns; each request as it gained a token or ended."""
        while any(live.finish is None for live in batch):
            for live in batch:
                if live.finish is None:
                    (self._denoise if self.options.algorithm else self._step)(live)
                    if live.finish is not None:
                        self._end(live)
                    yield live
            await asyncio.sleep(self.options.token_s)
            for live in batch:
                if (live.finish or {}).get("type") == "abort" and live.rid in self.live:
                    self._end(live)
                    yield live

    def _step(self, live: Live) -> None:
        params = live.params
        if not live.output:
            self._trie(live).insert(live.ids)
        if params["max_new_tokens"] == 0:
            live.finish = {"type": "length", "length": 0}
            return
        position = len(live.ids) + len(live.output)
        uniform = self._entropy.random()
        if self.options.is_seeded and params["sampling_seed"] is not None:
            uniform = uniform_of(params["sampling_seed"], position)
        stop_ids = frozenset({EOS, *(params["stop_token_ids"] or ())})
        drawn = draw(
            live.ids + live.output,
            live.output,
            params,
            stop_ids,
            uniform,
            is_raw=self.options.is_raw,
            decode=self._text,
        )
        live.output.append(drawn.token)
        live.logps += listed(drawn.reported, [drawn.token])
        live.tops.append(top(drawn.reported, live.body.get("top_logprobs_num") or 0))
        live.chosen.append(listed(drawn.reported, live.body.get("token_ids_logprob") or ()))
        live.text = self._text(live.output)
        self._check_end(live, drawn.token, stop_ids)

    def _denoise(self, live: Live) -> None:
        """To the end of the block; its tokens are a function of all before, and of chance."""
        if not live.output:
            self._trie(live).insert(live.ids)
        most, params = live.params["max_new_tokens"], live.params
        stop_ids = frozenset({EOS, *(params["stop_token_ids"] or ())})
        while live.finish is None:
            at = len(live.ids) + len(live.output)
            is_drawn = self.options.algorithm == SAMPLED and params["temperature"] > 0
            uniform = uniform_of(int(live.rid[:16], 16), at) if is_drawn else 0.0
            how = {**DEFAULTS, "temperature": params["temperature"] if is_drawn else 0.0}
            ids = live.ids + live.output
            drawn = draw(ids, (), how, stop_ids, uniform, is_raw=False, decode=self._text)
            live.output.append(drawn.token)
            live.text = self._text(live.output)
            self._check_end(live, drawn.token, stop_ids)
            if (at + 1) % BLOCK == 0:
                break
        assert len(live.output) <= most

    def _check_end(self, live: Live, token: int, stop_ids: frozenset[int]) -> None:
        params = live.params
        stops = params["stop"] or []
        for stop in [stops] if isinstance(stops, str) else stops:
            if stop and stop in live.text:
                live.finish = {"type": "stop", "matched": stop}
                live.text = live.text[: live.text.index(stop)]
                return
        if token in stop_ids and not params["ignore_eos"]:
            live.finish = {"type": "stop", "matched": token}
            live.text = self._text(live.output[:-1])
        elif len(live.output) >= params["max_new_tokens"]:
            live.finish = {"type": "length", "length": len(live.output)}

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _end(self, live: Live) -> None:
        self._trie(live).insert(live.ids + live.output[:-1])
        self.live.pop(live.rid, None)
        if not self.live:
            self.is_idle.set()
        if live.session is not None and live.session[0] in self.sessions:
            name, parent = live.session
            self.sessions[name][live.rid] = Node(live.ids, live.output, parent)

    def _forget(self, batch: list[Live]) -> None:
        for live in batch:
            if self.live.get(live.rid) is live:
                self._end(live)

    def _body(self, live: Live, start: int, text_start: int) -> dict[str, Any]:
        """The reply, its lists from `start` on."""
        meta: dict[str, Any] = {
            "id": live.rid,
            "finish_reason": live.finish,
            "prompt_tokens": len(live.ids),
            "completion_tokens": len(live.output),
            "cached_tokens": live.cached,
        }
        if live.wants_logps:
            meta |= self._prompt_rows(live)
            meta["output_token_logprobs"] = live.logps[start:]
            if live.body.get("top_logprobs_num"):
                meta["output_top_logprobs"] = live.tops[start:]
            if live.body.get("token_ids_logprob"):
                meta["output_token_ids_logprobs"] = live.chosen[start:]
        return {
            "text": live.text[text_start:],
            "output_ids": live.output[start:],
            "meta_info": meta,
        }

    def _prompt_rows(self, live: Live) -> dict[str, Any]:
        """Of the prompt from its start on; nothing stands before its first token."""
        rows = {"input_token_logprobs": [], "input_top_logprobs": []}  # type: dict[str, list[Any]]
        for at in range(live.start, len(live.ids)):
            token = live.ids[at]
            if at == live.start:
                rows["input_token_logprobs"].append([None, token, None])
                rows["input_top_logprobs"].append(None)
                continue
            row = logps_after(live.ids[:at])
            rows["input_token_logprobs"] += listed(row, [token])
            rows["input_top_logprobs"].append(top(row, live.body.get("top_logprobs_num") or 0))
        if not live.body.get("top_logprobs_num"):
            del rows["input_top_logprobs"]
        return rows

    async def _events(self, batch: list[Live], is_list: bool) -> AsyncIterator[bytes]:
        try:
            if self.broken:
                yield event_of(self.broken.pop(0))
            else:
                for live in batch:
                    self._admit(live)
                async for live in self._advance(batch):
                    await self.may_go_on.wait()
                    for event in self._due(live, is_list):
                        yield event_of(event)
        except Refused as err:
            error = {"type": "invalid_request_error", "code": err.status, **err.body["error"]}
            yield event_of({"error": error})
        finally:
            self._forget(batch)
        yield b"data: [DONE]\n\n"

    def _due(self, live: Live, is_list: bool) -> list[dict[str, Any]]:
        unsent = len(live.output) - live.sent
        interval = live.params["stream_interval"] or 1
        if live.finish is None and not (live.sent == 0 or unsent >= interval):
            return []
        start = live.sent if self.options.is_delta else 0
        event = self._body(live, start, live.sent_text if self.options.is_delta else 0)
        live.sent, live.sent_text = len(live.output), len(live.text)
        if is_list:
            event["index"] = live.index
        is_twice = self.options.repeats and not self.options.is_delta
        return [event, event] if is_twice else [event]


class FakeServer:
    """A fake on a loopback port of its own, in a thread, until `stop` or `kill`.

    Args:
        options: How it is started.
        port: 0 picks a free one.
    """

    def __init__(self, options: FakeOptions, port: int = 0) -> None:
        self.fake = Fake(options)
        self.fake.die = self._die
        # With the protocol named, asyncio sends small packets at once; without, after 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.fake.app, log_level="critical", ws="none", lifespan="off", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        """End it in an orderly way."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    def kill(self) -> None:
        """Nobody is there any more: connections break, and new ones are refused."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._die)
        self._thread.join(10)
        self._socket.close()

    def _die(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._socket)  # nobody is accepted from now on
        self._drop_connections()
        self._dying = self._loop.create_task(self._end())

    async def _end(self) -> None:
        # One just accepted is no connection yet; asyncio loses it when its listener closes first.
        for _ in range(4):
            await asyncio.sleep(0)
        self._drop_connections()
        for listener in self._server.servers:
            listener.close()
        self._server.should_exit = self._server.force_exit = True

    def _drop_connections(self) -> None:
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    def _serve(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._socket.listen()
            self._ready.set()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(run())


def fake_model(directory: Path) -> Path:
    """A model directory for `FakeOptions.model_path`."""
    return write_fake_model(directory)
