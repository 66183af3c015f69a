"""Servers to compare: bough on an engine, and a bare vLLM of the very same settings.

Every server is a child process in a process group of its own, on a free loopback port, ended with
everything it started. vLLM is started through `vllm.entrypoints.openai.api_server`, which is what
``vllm serve`` runs: the console script of the CPU package cannot find its own version.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import httpx

ROOT: Final = Path(__file__).resolve().parents[2]
GENERATOR: Final = "sapling-sums"
JUDGE: Final = "sapling-prm"
GENERATOR_DIR: Final = ROOT / "models" / "sapling_sums"
JUDGE_DIR: Final = ROOT / "models" / "sapling_prm"
VLLM_PYTHON: Final = ROOT / ".venv-vllm" / "bin" / "python"
MAX_TOKENS: Final = 256
_START_S: Final = 240.0
_STOP_S: Final = 20.0

VLLM_ENVIRONMENT: Final[Mapping[str, str]] = {
    "TORCHDYNAMO_DISABLE": "1",  # Inductor would compile the sampler on the first call
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets the executor "uni" stand on a CPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
VLLM_OPTIONS: Final[Mapping[str, Any]] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_num_seqs": 64,
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 256 << 20,
    "distributed_executor_backend": "uni",
}
"""The same for bough's engine and for the bare server."""


SGLANG_PYTHON: Final = ROOT / ".venv-sglang" / "bin" / "python"
_SGLANG_HOME: Final = ROOT / "tests" / "real_sglang"
_SGLANG_FLAGS: Final = (
    "--device=cpu",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--dtype=float32",
    "--disable-overlap-schedule",
    "--cuda-graph-backend-decode=disabled",
    "--cuda-graph-backend-prefill=disabled",
    "--max-total-tokens=16384",
    "--incremental-streaming-output",
)
_SGLANG_ENVIRONMENT: Final[Mapping[str, str]] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class ServerFailed(RuntimeError):
    """A server ended or was not ready in time; the message holds the end of its log."""


@contextmanager
def serving(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The URL of a server that answers `ready` with 200; it has ended when the block is left.

    Raises:
        ServerFailed: It ended early or was never ready.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(command),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=bare_environment() | dict(environment or {}),
            process_group=0,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(f"{url}{ready}", process, log)
            yield url
        finally:
            _end(process)


@contextmanager
def bare_vllm(*, is_capped: bool = False) -> Iterator[str]:
    """vLLM's own server on the sapling.

    Args:
        is_capped: Whether no answer may be longer than `MAX_TOKENS`, for clients that do not send
            a limit.
    """
    port = free_port()
    command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(GENERATOR_DIR), "--served-model-name", GENERATOR]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for name, value in VLLM_OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    if is_capped:
        command += ["--override-generation-config", json.dumps({"max_new_tokens": MAX_TOKENS})]
    with serving(command, port, "/health", vllm_environment()) as url:
        yield url


@contextmanager
def sglang() -> Iterator[str]:
    """SGLang's own server on the sapling, started as its tests start it on a CPU.

    Raises:
        ServerFailed: It is not installed (`make setup-sglang`), or does not start here.
    """
    if not SGLANG_PYTHON.exists():
        raise ServerFailed("SGLang is not installed here: `make setup-sglang` does that")
    port = free_port()
    command = [str(SGLANG_PYTHON), str(_SGLANG_HOME / "launch.py")]
    command += ["--model-path", str(GENERATOR_DIR), "--host", "127.0.0.1", "--port", str(port)]
    command += _SGLANG_FLAGS
    environment = {**_SGLANG_ENVIRONMENT, "PYTHONPATH": str(_SGLANG_HOME / "stand_ins")}
    with serving(command, port, "/health_generate", environment) as url:
        yield url


@contextmanager
def bough(kind: str) -> Iterator[str]:
    """`bough serve` with the sapling on an engine and its judge beside it."""
    port = free_port()
    options = dict(VLLM_OPTIONS) if kind == "vllm" else {}
    engine = {"kind": kind, "model": str(GENERATOR_DIR), "options": options}
    judge = {"kind": "process", "model": str(JUDGE_DIR)}
    settings = {
        "BOUGH_MODELS": json.dumps({GENERATOR: {"engine": engine, "reward_model": JUDGE}}),
        "BOUGH_REWARD_MODELS": json.dumps({JUDGE: judge}),
    }
    python = VLLM_PYTHON if kind == "vllm" else Path(sys.executable)
    environment = {**settings, **vllm_environment()}
    command = [str(python), "-m", "server.cli", "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    with serving(command, port, "/health/ready", environment) as url:
        yield url


def vllm_environment() -> dict[str, str]:
    """Variables of every process that computes: one thread each, as two cores are shared."""
    return {**VLLM_ENVIRONMENT, "OMP_NUM_THREADS": "1"}


def make_vllm() -> None:
    """Install vLLM in `.venv-vllm` unless it is there.

    Raises:
        subprocess.CalledProcessError: The installation failed; its output was printed.
    """
    if not VLLM_PYTHON.exists():
        subprocess.run(["make", "setup-vllm"], cwd=ROOT, check=True)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def bare_environment() -> dict[str, str]:
    """This process's variables without what would configure bough or its interpreter."""
    unwanted = ("BOUGH_", "VLLM_", "PYTHON", "VIRTUAL_ENV", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"PYTHONPATH": str(ROOT)}


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    give_up_at = time.monotonic() + _START_S
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < give_up_at:
            if process.poll() is not None:
                raise ServerFailed(f"ended with status {process.returncode}:\n{_tail(log)}")
            with suppress(httpx.TransportError):  # not listening yet
                if client.get(url).status_code == 200:
                    return
            time.sleep(0.2)
    raise ServerFailed(f"not ready within {_START_S:.0f} s:\n{_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-4000:].decode(errors="replace")
