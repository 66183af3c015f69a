"""A real SGLang with a block-diffusion model and our algorithm in it."""

from __future__ import annotations

import pytest

from tests.contract.sglang_blocks import CHECKS, Blocks, Check
from tests.real_sglang.rig import RealServer
from tests.real_sglang.tiny_llada2 import BLOCK

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_blocks(check: Check, block_server: RealServer) -> None:
    await check(Blocks(block_server.url, BLOCK))
