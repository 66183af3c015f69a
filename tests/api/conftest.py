from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from server.settings import Settings
from tests.api.harness import client_of, echo_settings, noisy_settings, serving


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    async with serving(echo_settings()) as made:
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as made:
        yield made


@pytest.fixture
async def noisy() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(noisy_settings()) as served, client_of(served) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def saplings() -> AsyncIterator[FastAPI]:
    """The server of all bundled models, as `bough serve` without arguments starts it.

    Opening them takes seconds, so the tests of a module share it; they run on the module's loop.
    """
    async with serving(Settings()) as made:
        yield made
