"""A real vLLM on this machine's CPU. Starting one takes ten seconds, so they are shared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI

from engines.vllm_async import open_engine
from engines.vllm_engine import VllmEngine
from models.registry import bundled
from server.settings import Settings
from tests.api.harness import serving
from tests.contract.tiny_llama import write_tiny_llama

SMALL: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 64,
    "distributed_executor_backend": "uni",
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama; its context is 192 tokens and its vocabulary 293."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"), head_dim=32)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny(tiny_model: Path) -> AsyncIterator[VllmEngine]:
    """The random Llama on vLLM."""
    engine = open_engine("tiny", str(tiny_model), SMALL)
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def app() -> AsyncIterator[FastAPI]:
    """The whole server with the bundled generator on vLLM and its judge on the embedded runtime."""
    directories = {name: str(directory) for name, directory in bundled().items()}
    model = {
        "engine": {"kind": "vllm", "model": directories["sapling-sums"], "options": SMALL},
        "reward_model": "sapling-prm",
    }
    judge = {"kind": "process", "model": directories["sapling-prm"]}
    settings = Settings(models={"sapling": model}, reward_models={"sapling-prm": judge})
    async with serving(settings) as served:
        yield served


@pytest.fixture
def sapling(app: FastAPI) -> VllmEngine:
    """The engine of the server."""
    engine = app.state.services.catalog.models["sapling"].engine
    assert isinstance(engine, VllmEngine)
    return engine
