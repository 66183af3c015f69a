from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtests import driver
from loadtests.driver import drive, is_client_bound, main, open_client, result_of, show
from loadtests.plan import Plan
from tests.unit.loadtests.peer import running_peer

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two")]


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def peer(seen: list[dict[str, Any]]) -> Iterator[str]:
    with running_peer(seen) as url:
        yield url


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in PROMPTS))
    return path


async def test_every_kind_of_end_is_counted(peer: str, seen: list[dict[str, Any]]) -> None:
    mix = {"single": 2.0, "refused": 1.0, "broken": 1.0, "endless": 1.0}
    plan = Plan([0.0] * 40, mix, PROMPTS, "peer-model", seed=5, grace_s=2)
    async with open_client(peer) as client:
        records = await drive(plan, client)
    asked = [request.strategy for request in plan.requests()]
    assert [record.strategy for record in records] == asked
    assert set(asked) == set(mix)
    ends = {"single": "ok", "refused": "error", "broken": "error", "endless": "incomplete"}
    assert [record.outcome for record in records] == [ends[strategy] for strategy in asked]
    codes = {(record.strategy, record.status, record.code) for record in records}
    assert codes == {
        ("single", 200, None),
        ("refused", 429, "overloaded"),
        ("broken", 200, "engine_gone"),
        ("endless", 200, None),
    }
    whole = next(record for record in records if record.outcome == "ok")
    assert (len(whole.text_times_s), whole.answer_tokens, whole.generated_tokens) == (5, 5, 25)
    assert whole.scheduled_s <= whole.sent_s <= whole.text_times_s[0] <= (whole.ended_s or 0)
    summary = result_of(plan, records, {})["summary"]
    assert summary["refused"]["errors_by_code"] == {"429 overloaded": asked.count("refused")}
    assert summary["total"]["n"] == 40
    assert len(seen) == 40


async def test_requests_ask_for_what_the_plan_says(peer: str, seen: list[dict[str, Any]]) -> None:
    plan = Plan(
        [0.0, 0.001, 0.002],
        {"single": 1.0},
        PROMPTS,
        "peer-model",
        seed=100,
        params={"single": {"width": 3}},
        options={"temperature": 0.5},
    )
    async with open_client(peer) as client:
        await drive(plan, client)
    seen.sort(key=lambda body: body["seed"])
    assert [body["seed"] for body in seen] == [100, 101, 102]
    assert [body["messages"] for body in seen] == [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    for body in seen:
        assert body["model"] == "peer-model"
        assert body["temperature"] == 0.5
        assert body["bough"] == {"strategy": "single", "params": {"width": 3}, "cache": False}
        assert body["stream_options"] == {"include_usage": True}


async def test_arrivals_do_not_wait_for_requests_that_hang(peer: str) -> None:
    """Closed loops would send the second only when the first has ended, which it never does."""
    plan = Plan([0.0, 0.01, 0.02], {"endless": 1.0}, PROMPTS, "peer-model", grace_s=5)
    async with open_client(peer) as client:
        records = await drive(plan, client)
    assert [record.status for record in records] == [200] * 3
    assert {record.outcome for record in records} == {"incomplete"}


def test_the_mix_is_drawn_by_its_shares() -> None:
    """A quarter of 4000, within 5 standard deviations: false alarms below 1e-6."""
    plan = Plan([0.0] * 4000, {"a": 3.0, "b": 1.0}, PROMPTS, "m", seed=3)
    share = sum(request.strategy == "b" for request in plan.requests()) / 4000
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_command_line_writes_what_it_measured(
    peer: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "deep" / "out.json", tmp_path / "out.html"
    arguments = ["--url", peer, "--requests", "6", "--rate", "500", "--mix", "single=3,refused=1"]
    files = ["--prompts", str(prompts), "--json", str(out), "--html", str(page)]
    assert main([*arguments, "--seed", "1", *files]) == 0
    result = json.loads(out.read_text())
    assert (result["model"], result["seed"], result["schema_version"]) == ("peer-model", 1, 1)
    assert len(result["requests"]) == 6
    total = result["summary"]["total"]
    assert total["ok"] + total["errors"] == 6
    assert total["errors_by_code"] == {"429 overloaded": total["errors"]}
    assert total["ttft_s_n"] == total["ok"]
    printed = capsys.readouterr().out
    for word in ("TTFT", "TPOT", "E2E", "requests/s", "single", "total", "429 overloaded"):
        assert word in printed
    assert "<svg" in page.read_text()


def test_the_exit_code_tells_when_nothing_completed(peer: str, prompts: Path) -> None:
    few = ["--requests", "2", "--rate", "500", "--mix", "refused", "--prompts", str(prompts)]
    assert main(["--url", peer, *few]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "http://192.0.2.1:8000"], "not this machine"),
        (["--url", "ftp://127.0.0.1"], "give one such as"),
        (["--url", "http://[::"], "url"),
        (["--url", "http://127.0.0.1:1", "--rate", "0"], "rate"),
        (["--url", "http://127.0.0.1:1", "--mix", "single=0"], "mix"),
        (["--url", "http://127.0.0.1:1", "--mix", "single,single"], "mix"),
        (["--url", "http://127.0.0.1:1", "--mix", "=1"], "mix"),
        (["--url", "http://127.0.0.1:1", "--mix", "single=some"], "mix"),
        (["--url", "http://127.0.0.1:1", "--params", "ets=[1]"], "params"),
        (["--url", "http://127.0.0.1:1", "--params", "ets"], "params"),
        (["--url", "http://127.0.0.1:1", "--", "--port", "1"], "leave --url out"),
        (["--url", "http://127.0.0.1:1", "--prompts", "/nowhere"], "prompts"),
        (["--url", "http://127.0.0.1:1"], "no model found"),
    ],
)
def test_arguments_that_cannot_be_driven_are_refused(
    arguments: list[str], said: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--requests", "1", "--prompts", str(prompts)]
    place = arguments.index("--") if "--" in arguments else len(arguments)
    assert main([*given, *arguments[:place], *arguments[place:]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("line", ["", "not json\n", '{"content": "x"}\n', "7\n"])
def test_prompts_without_messages_are_refused(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    url = "http://127.0.0.1:1"
    assert main(["--url", url, "--requests", "1", "--prompts", str(path)]) == 2
    assert "prompts" in capsys.readouterr().err


def test_loopback_names_are_this_machine() -> None:
    for url in ("http://localhost:8000", "http://127.3.2.1", "http://[::1]:8000"):
        driver.check_target(url, allow_remote=False)
    driver.check_target("http://192.0.2.1", allow_remote=True)


def test_a_late_driver_is_said_to_be() -> None:
    assert is_client_bound({"queue_s_p99": 0.03, "ttft_s_p50": 1.0})
    assert not is_client_bound({"queue_s_p99": 0.01, "ttft_s_p50": 1.0})
    assert not is_client_bound({"queue_s_n": 0})
    result: dict[str, Any] = {"model": "m", "url": "u", "duration_s": 0.0}
    plan = Plan([], {"single": 1.0}, PROMPTS, "m")
    result["summary"] = result_of(plan, [], {})["summary"]
    result["summary"]["total"] |= {"queue_s_p99": 0.03, "ttft_s_p50": 1.0}
    console = Console(file=io.StringIO(), width=200)
    show(result, console)
    assert isinstance(console.file, io.StringIO)
    assert "client-bound: requests left up to 30.0 ms late" in console.file.getvalue()
