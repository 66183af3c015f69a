"""The fake of SGLang keeps the protocol that the real server was seen to keep."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.contract.sglang_client import Wire
from tests.contract.sglang_protocol import CHECKS, JUDGE_CHECKS, Check
from tests.sglang_fake import FakeOptions, FakeServer
from tests.sglang_fake_model import VOCAB_SIZE

VARIANTS = {
    "cumulative": FakeOptions(token_s=0.002, context_tokens=1024),
    "delta": FakeOptions(
        token_s=0.002, context_tokens=1024, is_delta=True, is_raw=True, is_seeded=True
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    running = FakeServer(VARIANTS[request.param])
    yield running
    running.stop()


@pytest.fixture(scope="module")
def judge_server() -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(is_embedding=True))
    yield running
    running.stop()


@pytest.fixture
async def wire(server: FakeServer) -> AsyncIterator[Wire]:
    options = server.fake.options
    async with httpx.AsyncClient(base_url=server.url, verify=False, timeout=30) as client:
        yield Wire(client, options.is_delta, options.is_raw, VOCAB_SIZE)


@pytest.fixture
async def judge_wire(judge_server: FakeServer) -> AsyncIterator[Wire]:
    async with httpx.AsyncClient(base_url=judge_server.url, verify=False, timeout=30) as client:
        yield Wire(client, False, False, VOCAB_SIZE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_protocol(check: Check, wire: Wire) -> None:
    await check(wire)


@pytest.mark.parametrize("check", JUDGE_CHECKS, ids=lambda check: check.__name__)
async def test_judge_protocol(check: Check, judge_wire: Wire) -> None:
    await check(judge_wire)


@pytest.mark.parametrize(
    "fatal",
    [
        {"input_ids": [1, -1]},
        {"input_ids": [1], "return_logprob": True, "top_logprobs_num": VOCAB_SIZE + 1},
    ],
)
async def test_what_ends_the_real_server_ends_the_fake(fatal: dict[str, object]) -> None:
    running = FakeServer(FakeOptions())
    try:
        async with httpx.AsyncClient(base_url=running.url, verify=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/generate", json=fatal)
    finally:
        running.stop()
