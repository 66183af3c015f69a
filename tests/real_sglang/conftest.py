"""Servers that the tests of this folder share; one is started after the other has gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_sglang.rig import HERE, PYTHON, ROOT, RealServer

SAPLING = ROOT / "models" / "sapling_sums"


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if not PYTHON.exists():
        pytest.skip("no .venv-sglang: make setup-sglang")


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sglang_logs")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), context_tokens=1024)


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-label classifier of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.contract.tiny_llama import write_tiny_llama

    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny_judge"), context_tokens=256)
    config = LlamaConfig.from_pretrained(directory)
    config.num_labels, config.pad_token_id = 1, config.eos_token_id
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def sapling(logs: Path) -> Iterator[RealServer]:
    """A bundled model on a server that was started as our documentation recommends it."""
    server = RealServer(
        SAPLING,
        logs / "sapling.log",
        "--incremental-streaming-output",
        environment={"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"},
    )
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def plain(tiny: Path, logs: Path) -> Iterator[RealServer]:
    """A random model on a server as SGLang starts it by default."""
    server = RealServer(tiny, logs / "plain.log")
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture(scope="session", params=["plain", "sapling"])
def generator(request: pytest.FixtureRequest) -> RealServer:
    server: RealServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def block_server(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[RealServer]:
    """A LLaDA2 whose blocks are drawn; a step reveals much, so that few of them are needed."""
    from tests.contract.tiny_llama import write_tiny_llama
    from tests.real_sglang.tiny_llada2 import write_tiny_llada2

    directory = write_tiny_llama(tmp_path_factory.mktemp("llada2"), context_tokens=1024)
    known = json.loads((directory / "config.json").read_text())
    write_tiny_llada2(
        directory, readable=known["vocab_size"], eos_id=known["eos_token_id"], context_tokens=1024
    )
    (directory / "algorithm.yaml").write_text("threshold: 0.03\n")
    server = RealServer(
        directory,
        logs / "blocks.log",
        "--dllm-algorithm=SampledConfidence",
        f"--dllm-algorithm-config={directory / 'algorithm.yaml'}",
        "--max-running-requests=8",
        environment={"PYTHONPATH": os.pathsep.join((str(HERE / "stand_ins"), str(ROOT)))},
    )
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def judge(tiny_judge: Path, logs: Path) -> Iterator[RealServer]:
    server = RealServer(tiny_judge, logs / "judge.log", "--is-embedding")
    try:
        yield server.wait_ready()
    finally:
        server.kill()
