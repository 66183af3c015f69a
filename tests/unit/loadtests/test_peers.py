"""Comparing contenders: what rows say of each other, and what is asked of each."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.peers import its_hub, servers
from loadtests.peers.blocks import Block, Row, are_right, prompt_of, versus, word_problems
from models.tasks.base import solution_of

BLOCK = Block(("How many?",), width=4, in_flight=2, temperature=1.0, max_steps=9, seed=3)


def test_a_block_is_one_line_of_json() -> None:
    assert "\n" not in BLOCK.to_json()
    assert Block.from_json(BLOCK.to_json()) == BLOCK


def test_rows_are_compared_block_by_block() -> None:
    ours = Row(seconds=[1.0, 2.0, 4.0], right=[True, True, False, True])
    theirs = Row(seconds=[2.0, 8.0, 4.0], right=[True, False, False, False])
    found = versus(ours, theirs)
    assert (found.speedup, found.slowest, found.fastest) == (2.0, 1.0, 4.0)
    assert found.gain == 0.5
    assert found.error == pytest.approx(0.288675, abs=1e-6)  # of 0, 1, 0, 1: 0.57735 / sqrt(4)


def test_rows_of_other_blocks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        versus(Row([1.0], [True]), Row([1.0, 2.0], [True]))


def test_answers_are_checked_exactly() -> None:
    problems = word_problems(3, seed=7)
    assert len({prompt_of(one) for one in problems}) == 3
    contents = [solution_of(problems[0]), "The answer is -1.", ""]
    assert are_right(problems, contents) == [True, False, False]


def test_the_two_vllms_have_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """One through flags, one through settings; nothing may be set on one side only."""
    from server.settings import load

    started: list[tuple[list[str], dict[str, str]]] = []

    class Started:
        def __init__(self, command: list[str], port: int, ready: str, variables: dict[str, str]):
            started.append((command, variables))

        def __enter__(self) -> str:
            return "http://nowhere"

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(servers, "serving", Started)
    with servers.bare_vllm(), servers.bough("vllm"):
        pass
    (bare, there), (_, here) = started
    for name in ("BOUGH_MODELS", "BOUGH_REWARD_MODELS"):
        monkeypatch.setenv(name, here.pop(name))
    assert here == there
    engine = load().settings.models[servers.GENERATOR].engine
    flags = [
        word
        for name, value in engine.options.items()
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    assert engine.kind == "vllm"
    assert " ".join(flags) in " ".join(bare)
    assert engine.model == bare[bare.index("--model") + 1]


async def test_a_contender_that_fails_is_no_row() -> None:
    """An error is not an answer that happens to be wrong."""
    refuse = httpx.MockTransport(lambda request: httpx.Response(429, text="busy"))
    async with httpx.AsyncClient(base_url="http://x", transport=refuse) as http:
        body = its_hub.bough_body("single")
        with pytest.raises(servers.ServerFailed, match="429: busy"):
            await its_hub.over_http(http, body, BLOCK)


async def test_what_bough_is_asked() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "42"}}]})

    async with httpx.AsyncClient(
        base_url="http://x", transport=httpx.MockTransport(answer)
    ) as http:
        seconds, contents = await its_hub.over_http(
            http, its_hub.bough_body("particle_filter"), BLOCK
        )
    assert contents == ["42"]
    assert seconds > 0
    (body,) = seen
    bough = body["bough"]
    assert bough == {
        "strategy": "particle_filter",
        "params": {"width": 4, "max_depth": 9},
        "cache": False,
    }
    assert (body["temperature"], body["max_completion_tokens"]) == (1.0, 256)


def test_a_server_that_ends_early_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    port = servers.free_port()
    with (
        pytest.raises(servers.ServerFailed, match="status 1:\nno such model"),
        servers.serving(command, port, "/health"),
    ):
        pass


def test_a_server_ends_with_its_block() -> None:
    port = servers.free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with servers.serving(command, port, "/") as url:
        assert httpx.get(url).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(url)


def test_the_table_names_every_contender() -> None:
    plan = its_hub.Plan(problems=2, repeats=1, tasks=("self_consistency",))
    rows = {name: Row([1.0 + at], [True, False]) for at, name in enumerate(its_hub.CONTENDERS)}
    found = its_hub.Comparison(plan, {"self_consistency": rows})
    table = its_hub.table_of(found, "self_consistency")
    assert list(table.columns[0].cells) == list(its_hub.CONTENDERS)
    written = found.to_json()["versus_its_hub"]["self_consistency"]
    assert written[its_hub.VLLM]["speedup"] == 0.5
    assert Path(its_hub.ENVIRONMENT).name == ".venv-its_hub"
