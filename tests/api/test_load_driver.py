"""The load driver, its own server and the examples, against real bough on the echo engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests import driver, own_server
from server.serve import BackgroundServer
from tests.api.harness import echo_settings

ROOT = Path(__file__).parents[2]
SETTINGS = """
[models.echo]
reward_model = "constant"
[models.echo.engine]
kind = "echo"
[reward_models.constant]
kind = "constant"
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with BackgroundServer(echo_settings(log_level="error")) as base:
        yield base


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "bough.toml"
    path.write_text(SETTINGS)
    return path


def test_a_mix_of_strategies_on_held_out_problems(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    mix = "single=0.5,best_of_n=0.25,self_consistency=0.25"
    params = ["--params", 'best_of_n={"width": 2}', "--params", 'self_consistency={"width": 2}']
    load = ["--requests", "12", "--rate", "100", "--seed", "3", "--mix", mix, *params]
    assert driver.main(["--url", url, *load, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    summary = result["summary"]
    assert result["model"] == "echo"
    assert set(summary) == {"single", "best_of_n", "self_consistency", "total"}
    assert (summary["total"]["n"], summary["total"]["ok"]) == (12, 12)
    assert summary["total"]["ttft_s_n"] == 12
    for request in result["requests"]:
        assert request["stop_reason"] == "done"
        assert request["answer_tokens"] >= 1
        assert request["generated_tokens"] >= request["answer_tokens"]
        if request["strategy"] == "best_of_n":
            assert request["generated_tokens"] > request["answer_tokens"]


def test_refusals_are_counted_with_their_code(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    load = ["--requests", "3", "--rate", "100", "--mix", "no_such_strategy", "--json", str(out)]
    assert driver.main(["--url", url, *load]) == 1
    total = json.loads(out.read_text())["summary"]["total"]
    assert total["errors_by_code"] == {"404 strategy_not_found": 3}


def test_an_own_server_is_gone_afterwards(settings_file: Path) -> None:
    with own_server.own_server(["--config", str(settings_file)]) as url:
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
        _examples_run(url)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health/live", trust_env=False)


def _examples_run(url: str) -> None:
    folder = ROOT / "clients" / "examples"
    path = os.pathsep.join([str(ROOT / "clients" / "python"), os.environ.get("PYTHONPATH", "")])
    commands = [[sys.executable, str(file), url] for file in sorted(folder.glob("*.py"))]
    assert len(commands) >= 3
    for command in [*commands, ["sh", str(folder / "ask.sh"), url]]:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
        assert ran.stdout, command
    assert '"kind":"ended"' in ran.stdout  # the last of ask.sh: the events of its own run


def test_a_server_that_cannot_start_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    load = ["--requests", "1", "--prompts", str(prompts)]
    assert driver.main([*load, "--", "--engine.kind", "no-such-engine"]) == 2
    said = capsys.readouterr().err
    assert "the server ended with status" in said
    assert "no-such-engine" in said
