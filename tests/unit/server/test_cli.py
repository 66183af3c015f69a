from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.cli import main

ECHO = ["--engine.kind", "echo"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BOUGH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bough.engines" in lines
    assert "  echo\tengines.echo:open_engine" in lines


def test_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert "\nbest_of_n: " in out
    assert "  width (integer, default " in out


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *ECHO]) == 0
    assert capsys.readouterr().out == "echo\techo\t-\tsingle\tno reward model\n"


def test_config_says_where_values_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOUGH_PORT", "81")
    assert main(["config", *ECHO, "--store.url", "redis://:hunter2@h/0"]) == 0
    out = capsys.readouterr().out
    assert "port = 81  (environment)" in out
    assert "engine.kind = 'echo'  (flag)" in out
    assert "models.echo.engine.kind = 'echo'  (flag)" in out
    assert "models.echo.engine.model = ''  (default)" in out
    assert "limits.max_n = 64  (default)" in out
    assert "store.url = '**********'  (flag)" in out
    assert "hunter2" not in out


def test_config_shows_no_keys_of_upstreams(capsys: pytest.CaptureFixture[str]) -> None:
    options = '{"api_key": "hunter2", "api_key_env": "KEY", "max_tokens": 5}'
    assert main(["config", *ECHO, "--engine.options", options]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert "engine.options.api_key = '**********'  (flag)" in out
    assert "engine.options.api_key_env = 'KEY'  (flag)" in out
    assert "engine.options.max_tokens = 5  (flag)" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--engine.kind", "nope"], "engine.kind is 'nope'"),
        (["serve", *ECHO, "--engine.options", "margins=3"], "margins"),
        (["serve", *ECHO, "--host", "300.0.0.1"], "cannot listen on 300.0.0.1"),
        (["serve", *ECHO, "--store.url", "reddis://h"], "store.url is 'reddis'"),
        (["serve", *ECHO, "--store.url", "redis://h/x"], "port and database are numbers"),
        (["serve", "--engine.model", "nowhere"], "nowhere"),
        (["chat", "--url", "http://127.0.0.1:1", "hi"], "http://127.0.0.1:1"),
        (["chat", *ECHO, "--model", "ecko", "hi"], "did you mean 'echo'"),
        (["chat", *ECHO, "--param", "width", "hi"], "write NAME=VALUE"),
    ],
)
def test_failures_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("bough: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_corrupt_model_directory_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "torn"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"})[:-4])
    assert main(["serve", "--engine.model", str(model)]) == 1
    err = capsys.readouterr().err
    assert "config.json" in err
    assert err.count("\n") == 1


def test_an_unknown_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "engin", "--out", "x"]) == 2
    assert "did you mean 'engine'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["srve"], ["serve", "--limits.maxn", "3"]])
def test_wrong_usage_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_chat_with_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *ECHO, "--seed", "7", "hello", "there"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("hello there\n[single, seed 7, ")


def test_a_conversation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["one", "", "two"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(["chat", *ECHO]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if not line.startswith("[")] == ["one", "two"]
