from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from engines.base import Health
from reward_models import remote
from reward_models.base import Candidate, RewardKind
from reward_models.conformance import CHECKS, Check, Subject, run_check
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.http import HttpJudge, at_path, open_judge
from tests.unit.reward_models.services import Service, worth

MESSAGES = ({"role": "user", "content": "12+30?"},)
RIGHT, WRONG = ("12+30=42\n", "So 42."), ("12+30=43\n", "So 43.")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "process": {"kind": "process"},
    "rerank": {"shape": "rerank", "path": "/rerank"},
    "score": {"shape": "score", "path": "/v1/score", "max_batch": 2},
}


def candidate(*steps: str) -> Candidate:
    return Candidate(MESSAGES, "".join(steps), (), steps)


def judge(url: str, **options: Any) -> HttpJudge:
    return open_judge("far", "scorer", {"base_url": url, **options})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_keeps_the_laws(check: Check, shape: str, url: str) -> None:
    await run_check(check, Subject(lambda: judge(url, **SHAPES[shape])))


@pytest.mark.parametrize("shape", SHAPES)
async def test_values_are_the_services(shape: str, url: str, service: Service) -> None:
    far = judge(url, **SHAPES[shape])
    scores = await far.score([candidate(*RIGHT), candidate(*WRONG)])
    assert [one.value for one in scores] == [worth("".join(RIGHT)), worth("".join(WRONG))]
    assert service.seen[0]["model"] == "scorer"
    await far.aclose()


async def test_a_process_judge_values_every_step(url: str) -> None:
    far = judge(url, kind="process")
    (score,) = await far.score([candidate("1+1=2\n", "2+2=5\n")])
    assert score.steps == (worth("1+1=2\n"), worth("1+1=2\n2+2=5\n"))
    assert far.info.kind is RewardKind.PROCESS
    await far.aclose()


async def test_names_and_paths_can_be_the_services_own(url: str, service: Service) -> None:
    far = judge(
        url, fields={"text": "answer"}, value_path="deep.scores.0", extra={"truncate": True}
    )
    (score,) = await far.score([candidate(*RIGHT)])
    assert score.value == worth("".join(RIGHT))
    assert service.seen[0]["answer"] == "".join(RIGHT)
    assert service.seen[0]["truncate"] is True
    await far.aclose()


@pytest.mark.parametrize("shape", ["plain", "rerank"])
async def test_one_bad_candidate_costs_no_other_its_value(
    shape: str, url: str, service: Service
) -> None:
    service.refuses = "unreadable"
    far = judge(url, **SHAPES[shape])
    scores = await far.score([candidate(*RIGHT), candidate("unreadable"), candidate(*WRONG)])
    assert [math.isnan(one.value) for one in scores] == [False, True, False]
    await far.aclose()


async def test_a_candidate_alone_that_cannot_be_read_is_no_outage(
    url: str, service: Service
) -> None:
    service.refuses = "unreadable"
    far = judge(url)
    (score,) = await far.score([candidate("unreadable")])
    assert math.isnan(score.value)
    await far.aclose()


@pytest.mark.parametrize(
    "options", [{"value_path": "nowhere"}, {"high": 0.1}, {"kind": "process", "steps_path": "x"}]
)
async def test_what_is_no_value_is_nan(options: dict[str, Any], url: str) -> None:
    far = judge(url, **options)
    (score,) = await far.score([candidate(*RIGHT)])
    assert math.isnan(score.value)
    await far.aclose()


async def test_a_text_instead_of_a_number_is_nan(url: str, service: Service) -> None:
    service.garbles = "So"
    far = judge(url)
    (score,) = await far.score([candidate(*RIGHT)])
    assert math.isnan(score.value)
    await far.aclose()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_it_is_asked_again(status: int, url: str, service: Service) -> None:
    service.failures = [status, status]
    far = judge(url)
    (score,) = await far.score([candidate(*RIGHT)])
    assert score.value == worth("".join(RIGHT))
    assert len(service.seen) == 3
    await far.aclose()


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_an_outage_is_said_without_the_key(status: int, url: str, service: Service) -> None:
    service.failures = [status] * 20
    far = judge(url, api_key="sk-secret", max_retries=1)
    with pytest.raises(RewardUnavailable) as caught:
        await far.score([candidate(*RIGHT), candidate(*WRONG)])
    assert str(status) in str(caught.value)
    assert "sk-secret" not in str(caught.value)
    assert service.keys[0] == "Bearer sk-secret"
    await far.aclose()


async def test_an_outage_of_a_part_is_nan_for_that_part(url: str, service: Service) -> None:
    far = judge(url, max_retries=0, max_concurrency=1)
    service.failures = [500]
    scores = await far.score([candidate(*RIGHT), candidate(*WRONG)])
    assert [math.isnan(one.value) for one in scores] == [True, False]
    await far.aclose()


async def test_a_lost_service_is_away_until_it_answers(
    url: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.0)
    far = judge(url, max_retries=0)
    service.failures = [503]
    with pytest.raises(RewardUnavailable):
        await far.score([candidate(*RIGHT)])
    assert far.health is Health.AWAY
    assert far._remote._returning is not None
    await asyncio.wait_for(far._remote._returning, 20)
    assert far.health is Health.READY
    await far.score([candidate(*RIGHT)])
    await far.aclose()
    assert far.health is Health.DEAD


async def test_nobody_there_is_an_outage() -> None:
    far = judge("http://127.0.0.1:9", max_retries=0)
    with pytest.raises(RewardUnavailable, match="does not answer"):
        await far.score([candidate(*RIGHT)])
    await far.aclose()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base_url": "ftp://x"},
        {"base_url": "http://x", "sahpe": "plain"},
        {"base_url": "http://x", "low": 1.0, "high": 0.0},
        {"base_url": "http://x", "shape": "rerank", "kind": "process"},
        {"base_url": "http://x", "fields": {"txt": "y"}},
        {"base_url": "http://x", "api_key_env": "BOUGH_NO_SUCH_KEY"},
        {"base_url": "http://x", "api_key_file": "/no/such/file"},
        {"base_url": "http://x", "api_key": ["sk-secret"]},
    ],
)
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(RewardLoadError, match="options") as caught:
        open_judge("far", "", options)
    assert "sk-secret" not in str(caught.value)


async def test_the_key_may_lie_in_a_file(url: str, service: Service, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    far = judge(url, api_key_file=str(tmp_path / "key"))
    await far.score([candidate(*RIGHT)])
    assert service.keys == ["Bearer sk-file"]
    await far.aclose()


def test_paths_lead_through_objects_and_lists() -> None:
    reply = {"a": [{"b": 1}, {"b": 2}]}
    assert [at_path(reply, path) for path in ("a.0.b", "a.-1.b", "a.7.b", "a.b", "c")] == [
        *(1, 2),
        *(None, None, None),
    ]
