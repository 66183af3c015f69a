from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.registry import bundled
from server.errors import SettingsError
from server.settings import Loaded, Settings, add_flags, leaves, load

ECHO = ["--engine.kind", "echo"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BOUGH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def loaded(*argv: str) -> Loaded:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flags = add_flags(parser)
    return load(flags, parser.parse_args(argv))


@pytest.mark.parametrize("said", ["true", "false"])
def test_a_flag_takes_the_value_that_the_environment_takes(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flag = loaded(*ECHO, "--cache.responses", said).settings
    monkeypatch.setenv("BOUGH_CACHE__RESPONSES", said)
    assert by_flag == loaded(*ECHO).settings
    assert by_flag.cache.responses == (said == "true")


def test_precedence_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("port = 1\n[limits]\nmax_n = 2\nmax_width = 3\nmax_candidates = 4\n")
    monkeypatch.setenv("BOUGH_LIMITS__MAX_N", "5")
    monkeypatch.setenv("BOUGH_LIMITS__MAX_WIDTH", "6")
    got = loaded(*ECHO, "--config", str(file), "--limits.max_n", "7")
    limits = got.settings.limits
    assert (limits.max_n, limits.max_width, limits.max_candidates) == (7, 6, 4)
    assert (limits.max_queued_runs, got.settings.port) == (256, 1)
    assert got.origins["limits.max_n"] == "flag"
    assert got.origins["limits.max_width"] == "environment"
    assert got.origins["limits.max_candidates"] == str(file)
    assert "limits.max_queued_runs" not in got.origins


def test_the_file_in_the_working_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "bough.toml").write_text('log_level = "error"')
    assert loaded(*ECHO).settings.log_level == "error"


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text("port = 5")
    monkeypatch.setenv("BOUGH_CONFIG", "a.toml")
    assert loaded(*ECHO).settings.port == 5


def test_models_by_id_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bough.toml").write_text(
        '[models.a]\nengine = {kind = "echo", options = {margin = 3}}\nreward_model = "c"\n'
        '[models."org/b"]\nengine.kind = "echo"\n[reward_models.c]\nkind = "constant"\n'
    )
    settings = loaded().settings
    assert list(settings.models) == ["a", "org/b"]
    assert settings.models["a"].engine.options == {"margin": 3}


def test_shorthand_is_one_model() -> None:
    settings = loaded(*ECHO, "--engine.options", "margin=3", "--engine.model", "big").settings
    assert list(settings.models) == ["big"]
    assert settings.models["big"].engine.options == {"margin": 3}
    assert list(loaded(*ECHO).settings.models) == ["echo"]


def test_shorthand_takes_a_local_directorys_name(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    settings = loaded("--engine.model", str(tmp_path / "llama")).settings
    assert list(settings.models) == ["llama"]
    assert settings.models["llama"].engine.kind == "embedded"


def test_without_a_model_all_bundled_ones_are_served() -> None:
    settings = loaded().settings
    without_files = {"short"}
    assert {*settings.models, *settings.reward_models} - without_files == set(bundled())
    for model in settings.models.values():
        assert Path(model.engine.model).is_dir()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--limits.max_n", "0"], "limits.max_n: Input should be greater than or equal to 1"),
        (["--limits.max_n", "x"], "(from flag)"),
        (["--port", "99999"], "port: "),
        (["--engine.options", "[1]"], "options"),
        (["--models", '{"a": {"engine": {"kind": "echo"}}}'], "not both"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--log_level", "loud"], "log_level"),
    ],
)
def test_bad_flags_are_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(*ECHO, *argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot"),
        ("[limits]\nmaxn = 1", "limits.maxn"),
        ("port =", "bough.toml"),
        ('[models.a]\nreward_model = "b"', "models.a.reward_model is 'b'"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bough.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        loaded()
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["BOUGH_PROT", "BOUGH_LIMIT__MAX_N", "BOUGH_LIMITS__MAXN"])
def test_a_misspelt_variable_does_not_vanish(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError):
        loaded(*ECHO)


def test_settings_read_nothing_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOUGH_PORT", "5")
    assert Settings(models={"a": {"engine": {"kind": "echo"}}}).port == 8000


def test_settings_are_frozen() -> None:
    settings = Settings(models={"a": {"engine": {"kind": "echo"}}})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.limits.max_n = 1  # type: ignore[misc]


def test_secrets_are_masked() -> None:
    settings = loaded(*ECHO, "--store.url", "redis://:hunter2@h/0").settings
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump(mode="json"))
    assert settings.store.url.get_secret_value() == "redis://:hunter2@h/0"


def test_every_setting_is_described() -> None:
    def descriptions(kind: type) -> list[str | None]:
        return [field.description for field in kind.model_fields.values()]  # type: ignore[attr-defined]

    for name in ("models", "reward_models", "host", "port", "engine", "log_level"):
        assert Settings.model_fields[name].description
    for name in ("limits", "store", "cache", "stream"):
        assert all(descriptions(Settings.model_fields[name].annotation))  # type: ignore[arg-type]


def test_leaves() -> None:
    assert dict(leaves({"a": 1, "b": {"c": {}, "d": {"e": 2}}})) == {"a": 1, "b.c": {}, "b.d.e": 2}
