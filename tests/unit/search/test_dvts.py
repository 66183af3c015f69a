"""Subtrees of `dvts` never mix, and each keeps its best."""

import zlib
from typing import Any

import pytest

from search.run import Result, Run
from search.strategies.dvts import DvtsParams
from tests.search_harness import request
from tests.toy_engine import END, ToyEngine, ToyJudge

Node = dict[str, Any]


def lines(text: str) -> dict[str, float]:
    """Lines of one letter; an end from the third on."""
    if len(text) % 2:
        return {"\n": 1.0}
    if len(text) >= 8:
        return {END: 1.0}
    letters = {"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.2}
    return letters | ({END: 0.3} if len(text) >= 4 else {})


def any_value(text: str) -> float:
    return zlib.crc32(text.encode()) % 97 / 97


async def run_of(**params: object) -> tuple[list[Node], Result]:
    engine, judge = ToyEngine(lines), ToyJudge(any_value)
    run = Run(request("dvts", params), engine=engine, judge=judge)
    result = await run.result()
    assert not engine.claims
    nodes: list[Node] = run.tree.snapshot()["nodes"]
    return nodes, result


@pytest.mark.parametrize(
    ("width", "subtrees", "sizes"),
    [
        (16, None, [4, 4, 4, 4]),
        (10, None, [3, 3, 2, 2]),
        (7, 2, [4, 3]),
        (2, 9, [1, 1]),
        (1, None, [1]),
    ],
)
def test_the_width_is_shared_out_exactly(
    width: int, subtrees: int | None, sizes: list[int]
) -> None:
    assert DvtsParams(width=width, subtrees=subtrees).sizes(width) == sizes


async def test_subtrees_never_mix() -> None:
    nodes, _ = await run_of(width=12, subtrees=3)
    # the root's children are dealt in order, four to a subtree
    subtree = {one["id"]: one["index"] // 4 for one in nodes if one["depth"] == 1}
    for one in nodes:
        if one["depth"] > 1:
            subtree[one["id"]] = subtree[one["parent"]]
    for depth in range(1, max(one["depth"] for one in nodes) + 1):
        level = [one for one in nodes if one["depth"] == depth]
        for number in range(3):
            brood = [one for one in level if subtree[one["id"]] == number]
            assert len(brood) in (0, 4)
            assert len({one["parent"] for one in brood}) <= 1
            if not brood:
                continue
            best = max(brood, key=lambda one: (one["score"], -one["id"]))
            continued = [one for one in nodes if one["parent"] == best["id"]]
            assert bool(continued) == (best["finish"] is None)
            for other in brood:
                if other is not best and other["finish"] is None:
                    assert other["state"] == "pruned"


async def test_every_finished_branch_is_a_candidate() -> None:
    nodes, result = await run_of(width=16)
    ended = {one["id"] for one in nodes if one["finish"] is not None}
    assert {one.branch for one in result.candidates} == ended
    assert len(ended) > 4


async def test_the_best_answer_may_be_asked_for() -> None:
    nodes, result = await run_of(width=16, choose="best")
    ended = [one for one in nodes if one["finish"] is not None]
    assert result.score == max(one["score"] for one in ended)
    scores = [one.score or 0.0 for one in result.candidates]
    assert scores == sorted(scores, reverse=True)


async def test_one_subtree_is_a_greedy_beam() -> None:
    kept = {}
    for name, params in (("dvts", {"subtrees": 1}), ("beam", {"keep": 1})):
        run = Run(
            request(name, {"width": 5, "max_depth": 2, **params}),
            engine=ToyEngine(lines),
            judge=ToyJudge(any_value),
        )
        await run.result()
        kept[name] = [
            (one["id"], one["parent"], one["text"]) for one in run.tree.snapshot()["nodes"]
        ]
    assert kept["dvts"] == kept["beam"]


async def test_the_depth_is_limited() -> None:
    nodes, result = await run_of(width=4, max_depth=1)
    assert max(one["depth"] for one in nodes) == 1
    assert result.answers[0].finish_reason == "length"
    assert len(result.candidates) == 2  # the best of each subtree
