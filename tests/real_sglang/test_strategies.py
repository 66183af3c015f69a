"""Every strategy there is, on a real SGLang worker with the bundled models."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engines.sglang_engine import SGLangEngine
from engines.sglang_http import open_engine
from reward_models.base import RewardModel
from reward_models.process import open_judge
from tests.every_strategy import check_strategy, every_strategy
from tests.real_sglang.rig import ROOT, RealServer

pytestmark = pytest.mark.sglang


@pytest.fixture
async def judge() -> AsyncIterator[RewardModel]:
    opened = open_judge("sapling-prm", str(ROOT / "models" / "sapling_prm"), {})
    yield opened
    await opened.aclose()


@pytest.fixture
async def engine(sapling: RealServer) -> AsyncIterator[SGLangEngine]:
    opened = open_engine("sapling", sapling.url, {"max_step_tokens": 24})
    yield opened
    await opened.aclose()


@every_strategy
async def test_strategies(strategy: str, engine: SGLangEngine, judge: RewardModel) -> None:
    await check_strategy(strategy, engine, judge)
