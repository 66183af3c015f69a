"""A real SGLang: its protocol is the fake's, and the engine and the judge keep the laws on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from engines import conformance
from engines.sglang_http import open_engine
from reward_models import conformance as judging
from reward_models.sglang_classify import open_judge
from tests.contract.sglang_client import Wire
from tests.contract.sglang_protocol import CHECKS, JUDGE_CHECKS, Check
from tests.real_sglang.rig import RealServer

pytestmark = pytest.mark.sglang


@pytest.fixture
async def wire(generator: RealServer) -> AsyncIterator[Wire]:
    async with httpx.AsyncClient(base_url=generator.url, verify=False, timeout=60) as client:
        yield Wire(client, generator.is_delta, generator.is_raw, generator.vocab_size)


@pytest.fixture
async def judge_wire(judge: RealServer) -> AsyncIterator[Wire]:
    async with httpx.AsyncClient(base_url=judge.url, verify=False, timeout=60) as client:
        yield Wire(client, False, False, judge.vocab_size)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_protocol(check: Check, wire: Wire) -> None:
    await check(wire)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.name)
async def test_engine(check: conformance.Check, generator: RealServer) -> None:
    subject = conformance.Subject(lambda: open_engine("real", generator.url, {}))
    try:
        await conformance.run_check(check, subject)
    except conformance.NotApplicable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("check", JUDGE_CHECKS, ids=lambda check: check.__name__)
async def test_judge_protocol(check: Check, judge_wire: Wire) -> None:
    await check(judge_wire)


@pytest.mark.parametrize("check", judging.CHECKS, ids=lambda check: check.name)
async def test_judge(check: judging.Check, judge: RealServer) -> None:
    subject = judging.Subject(
        lambda: open_judge("real", judge.url, {}), unreadable=("too long " * 300,)
    )
    await judging.run_check(check, subject)
