"""The demo's whole way, on the null engine: start, ask, check, stop."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from loadtests import demo
from loadtests.own_server import ServerDidNotStart, own_server
from search.registry import strategy_class

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
    assert refused == {name for name in rows if needs_next_rewards(name)}
    for row in (row for row in rows.values() if not row.refused):
        # An echoed word problem states no answer.
        assert (row.answered, row.right) == (2, 0)
        assert row.generated_tokens > 0
        assert 0 < row.unique_tokens <= row.logical_tokens
    with pytest.raises(demo.httpx.ConnectError):
        demo.httpx.get(f"{url}/health/live")
    quiet.print(demo.table_of(rows, 2))
    assert "0 of 2" in quiet.file.getvalue()


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
