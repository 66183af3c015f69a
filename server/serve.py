"""Running the app under uvicorn, and stopping it without hanging.

Engines and judges are opened before the port is, so that a model that cannot be served is one line
on the terminal and not a traceback. On a signal no new connection is taken, requests get
`shutdown_grace_s` to end, and then their tasks are cancelled, which cancels every branch of their
runs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.errors import SettingsError
from server.settings import Settings


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        settings: What to serve, and where.
        announce: Told the URL once requests are answered.

    Raises:
        SettingsError: The address cannot be listened on, or a setting fits no plugin.
        ModelLoadError: A model cannot be served.
        RewardLoadError: A reward model cannot be served.
        StoreConfigError: The store's URL is wrong.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    app = create_app(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, settings, _server(app, settings), announce))


class BackgroundServer:
    """A server in a thread of its own, on a free local port; a context manager giving its URL."""

    def __init__(self, settings: Settings) -> None:
        own = {"host": "127.0.0.1", "port": 0, "log_level": "warning"}
        self._settings = settings.model_copy(update=own)
        self._app = create_app(self._settings)
        self._server = _server(self._app, self._settings)
        self._url = ""
        self._error: Exception | None = None
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bough-server")

    def __enter__(self) -> str:
        """The URL, once requests are answered.

        Raises:
            Exception: Whatever kept the server from starting.
        """
        self._thread.start()
        self._is_up.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self._url

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(_serve(self._app, self._settings, self._server, self._announce))
        except Exception as err:  # raised again in the thread that waits
            self._error = err
        finally:
            self._is_up.set()

    def _announce(self, url: str) -> None:
        self._url = url
        self._is_up.set()


def _server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="off",  # ours is entered in `_serve`, before the port is opened
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )
    logging.getLogger("uvicorn.error").addFilter(_one_line_for_a_stop)
    return uvicorn.Server(config)


def _one_line_for_a_stop(record: logging.LogRecord) -> bool:
    """What the stop cut off has been told so (`server.sse`); its traceback says nothing more."""
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        record.msg, record.args = "a request was cut off by the server's stop", ()
        record.exc_info = record.exc_text = None
    return True


async def _serve(
    app: FastAPI, settings: Settings, server: uvicorn.Server, announce: Callable[[str], None]
) -> None:
    async with app.router.lifespan_context(app):
        listening = _listen(settings)
        with listening, _spent_signals():
            host, port = listening.getsockname()[:2]
            going = asyncio.ensure_future(server.serve(sockets=[listening]))
            # connections queue in the socket from here on, and are answered when the loop is free
            announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            await going
            if server.force_exit:  # asked a second time; uvicorn leaves the requests running then
                for task in server.server_state.tasks:
                    task.cancel()


@contextmanager
def _spent_signals() -> Iterator[None]:
    """Let uvicorn have the signals that stop it, and only it.

    It raises them once more when it is done, which would end the process before the engines are
    closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in stopping}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, as beside vLLM; Python's own loop otherwise.

    In front of vLLM, 32 requests at a time, it is worth some 6 % of the throughput.
    """
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server(
            (settings.host, settings.port), family=family, backlog=2048
        )
    except OSError as err:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {err.strerror or err}"
        ) from err
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, and without
    # it a body waits 40 ms for the client to acknowledge the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
