"""`bough serve` on vLLM as a process manager sees it: its engine dies, and it is started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.api.harness import CHAT
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED, SOON_S, until

pytestmark = SHARED


def asked(model: Path, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the cat"}]
    return {
        "model": model.name,
        "messages": messages,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }


@contextmanager
def served(model: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on `port`, 0 being any; its processes are gone in the end."""
    command = [
        *(sys.executable, "-m", "server.cli", "serve", "--port", str(port)),
        *("--engine.kind", "vllm", "--engine.model", str(model)),
        *("--engine.options", json.dumps(SMALL)),
    ]
    environment = {name: value for name, value in os.environ.items() if "BOUGH" not in name}
    environment["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    with tempfile.TemporaryFile("w+") as said:
        server = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert server.stdout is not None
        try:
            line = server.stdout.readline()  # its URL, or its end
            if not line.startswith("bough serves"):
                said.seek(0)
                raise AssertionError(f"it does not start: {line}{said.read()[-3000:]}")
            yield server, line.split()[-1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)
            server.stdout.close()


def members(group: int) -> dict[int, str]:
    """Living processes of a group, and their names."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
            state, _, number = rest.split()[:3]
            if int(number) == group and state != "Z":
                found[int(entry.name)] = name
    return found


async def has_begun(client: httpx.AsyncClient) -> bool:
    return 'bough_runs{state="running"} 1.0' in (await client.get("/metrics")).text


async def claims(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'state="claimed"' in line)


def kill_engine(server: subprocess.Popen[str]) -> None:
    cores = [pid for pid in members(server.pid) if pid != server.pid]
    assert cores
    for pid in cores:
        os.kill(pid, signal.SIGKILL)


async def ended(server: subprocess.Popen[str]) -> None:
    """SIGTERM is obeyed, and nothing is left behind."""
    server.send_signal(signal.SIGTERM)
    await until(lambda: server.poll() is not None)
    assert server.returncode == 0
    await until(lambda: not members(server.pid))  # Python's resource tracker is the last to go


async def dies_under_a_search(model: Path, server: subprocess.Popen[str], url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        assert (await client.post(CHAT, json=asked(model, 8))).status_code == 200
        search = {"strategy": "self_consistency", "params": {"width": 16}}
        cut_off = asyncio.create_task(
            client.post(CHAT, json={**asked(model, 150), "bough": search})
        )
        async with asyncio.timeout(60):
            while not await has_begun(client):
                pass
        kill_engine(server)
        async with asyncio.timeout(SOON_S):
            reply = await cut_off
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
            for path in ("/health/ready", "/health/live"):
                assert (await client.get(path)).status_code == 503
        assert await has_begun(client) is False
        assert await claims(client) == 0


async def test_an_engine_that_died_is_red_until_the_process_is_started_again(
    tiny_model: Path,
) -> None:
    with served(tiny_model, 0) as (server, url):
        await dies_under_a_search(tiny_model, server, url)
        await ended(server)
    with served(tiny_model, int(url.rsplit(":", 1)[1])) as (server, again):
        async with httpx.AsyncClient(base_url=again, timeout=60) as client:
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.post(CHAT, json=asked(tiny_model, 8))).status_code == 200
            kill_engine(server)  # while it has nothing to do
            async with asyncio.timeout(SOON_S):
                while (await client.get("/health/live")).status_code == 200:
                    pass
            assert (await client.get("/health/ready")).status_code == 503
