"""The ASGI app: routes, error handlers and what is open while it serves.

`create_app` has no side effects and may be called as often as one likes; engines, judges and the
store are opened by the app's lifespan and closed by it.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engines.errors import EngineError
from reward_models.errors import RewardError
from search.errors import SearchError
from server import chat, health, metrics, models, runs, strategies
from server.errors import InvalidRequest, ServerError, ShuttingDown, WireError, describe
from server.services import serving
from server.settings import Settings
from stores.errors import StoreError

_UI: Final = Path(__file__).parent / "ui"
_REQUEST_ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def create_app(settings: Settings) -> FastAPI:
    """The server for these settings; nothing is opened before its lifespan begins."""
    # the framework's own documentation page would load scripts from elsewhere
    app = FastAPI(title="bough", docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.settings = settings
    for module in (chat, models, strategies, runs, health, metrics):
        app.include_router(module.router)
    app.add_api_route("/", _page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/ui", StaticFiles(directory=_UI), name="ui")
    app.add_middleware(RequestIds)
    for kind in (ServerError, EngineError, SearchError, RewardError, StoreError):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_field)
    return app


class RequestIds:
    """Middleware: every response carries X-Request-Id, the client's own where it is plain.

    So does the 500 that what nobody expected becomes; the framework's own would be sent without.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and answer where an error came instead of a response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops: told before the connection closes
            if not has_started:
                await _response(describe(ShuttingDown()))(scope, receive, send_with_id)
            raise
        except Exception as err:  # a bug: whoever asked is told an id, the log has the rest
            if has_started:
                raise
            await _response(describe(err))(scope, receive, send_with_id)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with serving(app.state.settings) as services:
        app.state.services = services
        yield


async def _page() -> FileResponse:
    """The page that chats and draws the last run's tree."""
    return FileResponse(_UI / "index.html", headers=_PAGE_HEADERS)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return str(text)
    return uuid.uuid4().hex


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    return _response(describe(error))


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    said = f"{request.method} {request.url.path[:200]}: {error.detail}"
    wire = WireError(
        status=error.status_code,
        type="invalid_request_error",
        code=codes.get(error.status_code, "bad_request"),
        message=said,
    )
    return _response(wire, dict(error.headers or {}))


async def _refuse_field(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem: dict[str, Any] = error.errors()[0]
    param = ".".join(str(part) for part in problem["loc"][1:])
    code = "invalid_type" if problem["type"].endswith(("_type", "_parsing")) else "invalid_value"
    return _response(describe(InvalidRequest(f"{param}: {problem['msg']}", code=code, param=param)))


def _response(wire: WireError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(wire.body(), wire.status, {**wire.headers(), **(headers or {})})
