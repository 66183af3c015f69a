"""Every strategy on the embedded engine and over upstreams, with the bundled models.

On a real vLLM and a real SGLang the same is asked in `tests/real_vllm` and `tests/real_sglang`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from engines.base import Engine
from engines.openai_http import open_engine as open_openai
from models.registry import bundled
from reward_models.base import RewardModel
from tests.every_strategy import check_strategy, every_strategy
from tests.openai_upstream import upstream_over

pytest.importorskip("torch", reason="the embedded engine needs torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),  # an engine belongs to the loop it was used on
    pytest.mark.skipif(len(bundled()) < 2, reason="no generator and judge are bundled"),
]

KINDS: dict[str, dict[str, Any] | None] = {
    "embedded": None,
    "continued": {},
    "chats": {"dialect": "plain", "context_tokens": 2048},
}
"""The embedded engine, and an upstream that continues messages or only knows whole chats."""


def embedded() -> Engine:
    from engines.embedded.engine import open_engine

    return open_engine("sapling", str(bundled()["sapling-sums"]), {"device": "cpu"})


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with upstream_over(embedded) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    options = KINDS[request.param]
    if options is None:
        opened = embedded()
    else:
        url = request.getfixturevalue("upstream")
        opened = open_openai("up", "m", {"base_url": url, **options})
    yield opened
    await opened.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def judge() -> AsyncIterator[RewardModel]:
    from reward_models.process import open_judge

    opened = open_judge("sapling-prm", str(bundled()["sapling-prm"]), {"device": "cpu"})
    yield opened
    await opened.aclose()


@every_strategy
async def test_strategies(strategy: str, engine: Engine, judge: RewardModel) -> None:
    await check_strategy(strategy, engine, judge)
