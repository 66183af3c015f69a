"""`bough serve` as a process: real sockets, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
SLOW = ["--engine.kind", "echo", "--engine.options", "token_s=0.02"]


@contextmanager
def process(*flags: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server on a free port; killed at the end if it still runs."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", *SLOW, *flags]
    environment = {name: value for name, value in os.environ.items() if "BOUGH" not in name}
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("bough serves echo at http://127.0.0.1:"), server.communicate()
        with httpx.Client(base_url=line.split()[-1], timeout=30) as client:
            yield server, client
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def long_answer(stream: bool = True) -> dict[str, object]:
    message = {"role": "user", "content": "x" * 1000}
    return {"model": "echo", "messages": [message], "stream": stream}


def claimed(client: httpx.Client) -> float:
    text = client.get("/metrics").text
    line = next(line for line in text.splitlines() if 'state="claimed"' in line)
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_ends_it_cleanly(number: int) -> None:
    with process() as (server, client):
        assert client.get("/health/ready").status_code == 200
        server.send_signal(number)
        assert server.wait(30) == 0
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def test_a_signal_cancels_what_runs_after_the_grace() -> None:
    with process("--shutdown_grace_s", "1") as (server, client):
        with client.stream("POST", "/v1/chat/completions", json=long_answer()) as response:
            lines = response.iter_lines()
            while '"content":"x"' not in next(lines):
                pass
            server.send_signal(signal.SIGTERM)
            *_, last = filter(None, lines)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.wait(30) == 0
        assert server.stderr is not None
        said = server.stderr.read()
        assert "Traceback" not in said
        assert "cut off by the server's stop" in said


def test_a_killed_server_is_started_again_and_answers() -> None:
    """Clients lose their connection at once, and a new process on the same port knows no claims."""
    with process() as (server, client):
        port = str(client.base_url.port)
        soon = httpx.Timeout(30, read=2)
        search = {"strategy": "self_consistency", "params": {"width": 4}}
        asked = long_answer() | {"bough": search}
        url = "/v1/chat/completions"
        with client.stream("POST", url, json=asked, timeout=soon) as response:
            lines = response.iter_lines()
            assert next(lines).startswith(": ")
            while claimed(client) == 0:
                pass
            server.kill()
            with pytest.raises(httpx.RemoteProtocolError):  # not a timeout
                list(lines)
    with process("--port", port) as (_, client):
        assert client.base_url.port == int(port)
        assert client.get("/health/ready").status_code == 200
        assert client.post(url, json=long_answer(False) | {"max_tokens": 4}).status_code == 200
        assert claimed(client) == 0


def test_a_second_interrupt_does_not_wait_for_the_grace() -> None:
    with process("--shutdown_grace_s", "600") as (server, client):
        with client.stream("POST", "/v1/chat/completions", json=long_answer()) as response:
            lines = response.iter_lines()
            while '"content":"x"' not in next(lines):
                pass
            server.send_signal(signal.SIGINT)
            assert server.stderr is not None
            while "force quit" not in server.stderr.readline():
                pass
            server.send_signal(signal.SIGINT)
            *_, last = filter(None, lines)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.wait(30) == 0
        assert "Traceback" not in server.stderr.read()


def test_an_unstreamed_request_is_told_that_the_server_stops() -> None:
    with process("--shutdown_grace_s", "1") as (server, client):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                client.post, "/v1/chat/completions", json=long_answer() | {"stream": False}
            )
            while 'bough_runs{state="running"} 1.0' not in client.get("/metrics").text:
                pass
            server.send_signal(signal.SIGTERM)
            response = asked.result(30)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert server.wait(30) == 0


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
def test_a_closed_connection_gives_everything_back(is_stream: bool) -> None:
    with process() as (_, client):
        if is_stream:
            url = "/v1/chat/completions"
            with client.stream("POST", url, json=long_answer()) as response:
                lines = response.iter_lines()  # let go of, it would close the connection
                assert next(lines).startswith(": ")
                while claimed(client) == 0:
                    pass
        else:
            impatient = httpx.Timeout(30, read=0.3)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=long_answer(False), timeout=impatient)
        while claimed(client) > 0:
            pass
        text = client.get("/metrics").text
        assert 'bough_requests_total{status="cancelled",strategy="single"} 1.0' in text
        assert 'bough_runs{state="running"} 0.0' in text


def test_a_body_over_the_limit_is_answered_over_a_real_socket() -> None:
    with process() as (_, client):
        response = client.post("/v1/chat/completions", content=b" " * 5_000_000)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert client.get("/health").status_code == 200
