"""The demo's whole way, on the null engine: start, ask, check, stop."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from loadtests import demo
from loadtests.own_server import ServerDidNotStart, own_server
from search.registry import strategy_class
from tests.diffusion_models import write_tiny

CONFIG = """
[models.echo]
engine = {kind = "echo"}
reward_model = "fair"

[reward_models.fair]
kind = "constant"
"""


async def test_every_strategy_is_asked_and_the_server_is_gone_afterwards(tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO(), width=100)
    config = tmp_path / "bough.toml"
    config.write_text(CONFIG)
    with own_server(("--config", str(config)), is_apart=True) as url:
        rows = await demo.ask_all(url, "echo", 2, 7, quiet)
    assert set(rows) >= {"single", "best_of_n", "self_consistency", "beam", "ets"}
    # What needs more than a judge of whole answers is told by its refusal, not by its name.
    refused = {name for name, row in rows.items() if row.refused}
    assert refused == {name for name in rows if needs_next_rewards(name) or denoises(name)}
    for row in (row for row in rows.values() if not row.refused):
        # An echoed word problem states no answer.
        assert (row.answered, row.right) == (2, 0)
        assert row.generated_tokens > 0
        assert 0 < row.unique_tokens <= row.logical_tokens
    with pytest.raises(demo.httpx.ConnectError):
        demo.httpx.get(f"{url}/health/live")
    quiet.print(demo.table_of(rows, 2))
    assert "0 of 2" in quiet.file.getvalue()


async def test_what_the_first_model_lacks_is_asked_of_another(tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO(), width=120)
    config = tmp_path / "bough.toml"
    directory = write_tiny(tmp_path / "tiny", "llada")
    engine = f'engine = {{kind = "diffusion", model = "{directory}", options = {{length = 8}}}}'
    tiny = f'\n[models.tiny]\n{engine}\nreward_model = "fair"\ntask = "totals"\n'
    config.write_text(CONFIG + tiny)
    with own_server(("--config", str(config)), is_apart=True) as url:
        rows = await demo.ask_all(url, "echo", 1, 7, quiet)
    for name, row in rows.items():
        assert row.model == ("tiny" if denoises(name) else "echo")
        assert row.refused or row.answered == 1
    quiet.print(demo.table_of(rows, 1))
    assert "dts_star (tiny)" in quiet.file.getvalue()


def denoises(name: str) -> bool:
    return "denoise" in strategy_class(name).requires


def needs_next_rewards(name: str) -> bool:
    return getattr(strategy_class(name), "needs_next_rewards", False)


def test_a_server_apart_takes_settings_from_its_arguments_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOUGH_ENGINE__KIND", "nonsense")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bough.toml").write_text("nonsense = 1\n")
    with own_server(("--engine.kind", "echo"), is_apart=True) as url:
        assert demo.httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "echo"


def test_a_server_that_cannot_start_is_one_message() -> None:
    with (
        pytest.raises(ServerDidNotStart, match="ended with status 1"),
        own_server(("--engine.kind", "embedded", "--engine.model", "/nowhere")),
    ):
        pass


def test_a_strategy_the_model_cannot_carry_is_a_row() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(demo.table_of({"denoise": demo.Row(refused=True)}, 2))
    assert "not on this model" in console.file.getvalue()
