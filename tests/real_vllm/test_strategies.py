"""Every strategy there is, on vLLM with the bundled models."""

from __future__ import annotations

from fastapi import FastAPI

from engines.vllm_engine import VllmEngine
from tests.every_strategy import check_strategy, every_strategy
from tests.real_vllm.marks import SHARED

pytestmark = SHARED


@every_strategy
async def test_strategies(strategy: str, app: FastAPI, sapling: VllmEngine) -> None:
    judge = app.state.services.catalog.judge("sapling-prm")
    await check_strategy(strategy, sapling, judge)
