"""A real SGLang server on a loopback port: started from `.venv-sglang`, stopped as a group."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-sglang" / "bin" / "python"
START_S = 300.0

_FLAGS = (
    "--device=cpu",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--dtype=float32",
    "--disable-overlap-schedule",
    "--cuda-graph-backend-decode=disabled",
    "--cuda-graph-backend-prefill=disabled",
    "--max-total-tokens=8192",
)
_ENVIRONMENT = {
    "PYTHONPATH": str(HERE / "stand_ins"),
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RealServer:
    """One server: three processes in a group of their own; always on the same port.

    Args:
        model: A model directory.
        log: Where its output goes.
        flags: More of its flags.
        environment: More of its environment.
    """

    def __init__(
        self, model: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.is_delta = "--incremental-streaming-output" in flags
        self.is_raw = (environment or {}).get("SGLANG_RETURN_ORIGINAL_LOGPROB") == "1"
        self.vocab_size: int = json.loads((model / "config.json").read_text())["vocab_size"]
        self._log = log
        self._command = [str(PYTHON), str(HERE / "launch.py"), "--model-path", str(model)]
        self._command += ["--host", "127.0.0.1", "--port", str(port), *_FLAGS, *flags]
        self._environment = {**os.environ, **_ENVIRONMENT, **(environment or {})}
        self.start()

    def start(self) -> None:
        """Begin; `wait_ready` says when it is there."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> RealServer:
        """Until it generates, or judges."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health_generate", timeout=30).status_code == 200:
                    return self
            except httpx.TransportError:  # it does not listen yet: it ends, or it is asked again
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.5)
        self.kill()
        raise AssertionError(f"SGLang did not start:\n{self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End all its processes at once; nothing of it is worth saving."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
