"""vLLM keeps the laws of every engine."""

from __future__ import annotations

from typing import Any

import pytest

from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.vllm_engine import VllmEngine
from tests.real_vllm.marks import SHARED

pytestmark = SHARED

CLOSING = ("a_closed_engine_says_so", "a_closed_engine_answers_nobody")
"""Checks that close their engine; test_scarcity runs them on one of its own."""


class Shared:
    """An engine that outlives the check."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def aclose(self) -> None:
        """Others go on using it."""


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check.name not in CLOSING], ids=lambda check: check.name
)
async def test_keeps_the_law(check: Check, tiny: VllmEngine) -> None:
    try:
        await run_check(check, Subject(lambda: Shared(tiny)))  # type: ignore[arg-type,return-value]
    except NotApplicable as why:
        pytest.skip(str(why))
