"""What the tests on shared engines have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

import pytest

SHARED: Final = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),  # an engine belongs to the loop it was used on
    # vLLM and what it imports warn of what they will do differently one day.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here: `make test-vllm` has one"),
]

SOON_S: Final = 20.0
"""Clients still waiting so long after an engine died hang. It takes some tenths of a second, more
where the machine is busy: the limit finds the hang and measures nothing."""


async def until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Return when it holds.

    Raises:
        TimeoutError: It did not in time.
    """
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110  # vLLM and other processes tell nobody
            await asyncio.sleep(0.001)
