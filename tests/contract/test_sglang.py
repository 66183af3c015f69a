"""The SGLang engine and judge keep the laws, on the protocol fake."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.sglang_http import open_engine
from reward_models import conformance as judging
from reward_models.sglang_classify import open_judge
from tests.sglang_fake import FakeOptions, FakeServer, fake_model

VARIANTS = {
    "seeded": {"is_seeded": True, "repeats": True},
    "raw_deltas": {"is_delta": True, "is_raw": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model(tmp_path_factory.mktemp("fake_model"))


@pytest.fixture(scope="module", params=VARIANTS)
def server(request: pytest.FixtureRequest, model: Path) -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(model_path=str(model), **VARIANTS[request.param]))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def judge_server(model: Path) -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(model_path=str(model), is_embedding=True))
    yield running
    running.stop()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_engine(check: Check, server: FakeServer) -> None:
    try:
        await run_check(check, Subject(lambda: open_engine("fake", server.url, {})))
    except NotApplicable as why:
        pytest.skip(str(why))
    assert not server.fake.live, "a request runs on that nobody reads"


@pytest.mark.parametrize("check", judging.CHECKS, ids=lambda check: check.name)
async def test_judge(check: judging.Check, judge_server: FakeServer) -> None:
    long = ("a" * 300,)
    subject = judging.Subject(
        lambda: open_judge("fake", judge_server.url, {"sigmoid": True}), unreadable=long
    )
    await judging.run_check(check, subject)
