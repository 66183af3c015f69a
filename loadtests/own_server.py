"""A bough server of one's own: started on a free loopback port, ended by its pid."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import httpx

_ROOT: Final = Path(__file__).resolve().parents[1]
START_S: Final = 180.0
STOP_S: Final = 20.0


class ServerDidNotStart(RuntimeError):
    """The server ended or was not ready in time; the message holds the end of its log."""


@contextmanager
def own_server(
    arguments: Sequence[str] = (), *, start_s: float = START_S, is_apart: bool = False
) -> Iterator[str]:
    """The URL of a server that is ready; it has ended when the block is left, however it is left.

    Args:
        arguments: More arguments of `bough serve`.
        start_s: How long to wait for it to be ready.
        is_apart: Whether its settings come from `arguments` alone, and neither from this machine's
            variables nor from a file of the working directory.

    Raises:
        ServerDidNotStart: It ended early or was never ready.
    """
    port = _free_port()
    command = [sys.executable, "-m", "server.cli", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=empty if is_apart else None,
            env=_bare_environment() if is_apart else None,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log, start_s)
            yield url
        finally:
            _end(process)


def _bare_environment() -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BOUGH_")}
    paths = [str(_ROOT), *filter(None, [bare.get("PYTHONPATH")])]
    return bare | {"PYTHONPATH": os.pathsep.join(paths)}


def _wait_until_ready(
    url: str, process: subprocess.Popen[bytes], log: IO[bytes], start_s: float
) -> None:
    give_up_at = time.monotonic() + start_s
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < give_up_at:
            if process.poll() is not None:
                raise ServerDidNotStart(
                    f"the server ended with status {process.returncode}:\n{_tail(log)}"
                )
            try:
                if client.get(f"{url}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.1)
    raise ServerDidNotStart(f"the server was not ready within {start_s:.0f} s:\n{_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-4000:].decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
