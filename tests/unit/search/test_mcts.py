"""`mcts` on the toy engine; PUCT itself is in test_puct.py."""

import math
import zlib
from dataclasses import replace
from typing import Any

import pytest

from search.base import Outcome
from search.budget import Limits
from search.run import Result, Run
from search.search import Search
from tests.search_harness import TryOut, request
from tests.toy_engine import END, ToyEngine, ToyJudge


def lines(text: str) -> dict[str, float]:
    """Lines of one letter, an end after three."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.4, "b": 0.3, "c": 0.3} if len(text) < 6 else {END: 1.0}


def any_value(text: str) -> float:
    return zlib.crc32(text.encode()) % 97 / 97


async def run_of(judge: ToyJudge | None = None, **params: object) -> tuple[Run, Result]:
    engine = ToyEngine(lines)
    judge = judge or ToyJudge(any_value)
    run = Run(request("mcts", params), engine=engine, judge=judge)
    result = await run.result()
    assert not engine.claims
    assert not judge.claims
    return run, result


def expanded(run: Run) -> list[int]:
    return [event.data["branch"] for event in run.tree.events() if event.kind == "resampled"]


async def test_width_bounds_the_expansions() -> None:
    run, result = await run_of(width=5, children=3, batch=2)
    assert len(expanded(run)) == 4  # and the root
    assert result.spent.candidates == 15 or not any(
        one["finish"] for one in run.tree.snapshot()["nodes"] if one["depth"] == 4
    )


async def test_equal_steps_are_one_node() -> None:
    run, _ = await run_of(width=1, children=9)
    nodes = [one for one in run.tree.snapshot()["nodes"] if one["depth"] == 1]
    assert {one["text"] for one in nodes} == {"a\n", "b\n", "c\n"}
    kept = [one for one in nodes if one["state"] != "pruned"]
    assert len(kept) == 3
    assert {one["why"] for one in nodes if one["state"] == "pruned"} == {"the same step as another"}


async def test_where_nothing_finished_the_best_leaf_is_completed() -> None:
    run, result = await run_of(width=1, children=9)
    nodes = {one["id"]: one for one in run.tree.snapshot()["nodes"]}
    best = max(
        (one for one in nodes.values() if one["depth"] == 1 and one["state"] != "pruned"),
        key=lambda one: one["score"],
    )
    answer = result.answers[0]
    assert nodes[answer.branch]["parent"] == best["id"]
    assert answer.finish_reason == "stop"
    assert len(answer.content) == 6


async def test_a_search_that_is_cut_before_an_answer_returns_the_best_leaf() -> None:
    engine = ToyEngine(lines)
    run = Run(
        request("mcts", {"width": 8, "children": 4}, candidates=4),
        engine=engine,
        judge=ToyJudge(any_value),
    )
    result = await run.result()
    assert (result.stop_reason, result.spent.candidates) == ("budget", 4)
    assert result.answers[0].finish_reason == "length"
    assert not engine.claims


async def test_branches_of_the_largest_depth_are_not_expanded() -> None:
    run, _ = await run_of(width=50, children=3, max_depth=2)
    depths = {one["id"]: one["depth"] for one in run.tree.snapshot()["nodes"]}
    assert {depths[one] for one in expanded(run)} == {1}


async def test_the_answer_by_visits() -> None:
    def tempting(text: str) -> float:
        """One answer under b is the best; those under a are good one and all."""
        if text == "b\nb\nb\n":
            return 1.0
        return {"a": 0.8, "b": 0.1}.get(text[:1], 0.0)

    # greedy: all 13 inner nodes under a, then 12 under b, of which 11 reach its best answer
    params = {"width": 26, "children": 16, "batch": 1, "exploration": 0.0}
    answers = {}
    for choose in ("value", "visits"):
        _, result = await run_of(ToyJudge(tempting), choose=choose, **params)
        answers[choose] = result.answers[0].content
        assert len({one.branch for one in result.candidates}) == len(result.candidates)
    assert answers["value"] == "b\nb\nb\n"
    assert answers["visits"][0] == "a"


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-math.inf, math.inf)])
async def test_judges_of_other_ranges(bounds: tuple[float, float]) -> None:
    """The order of values is what the search goes by, not their range."""
    judge = ToyJudge(lambda text: 4 * any_value(text) - 2)
    judge.info = replace(judge.info, low=bounds[0], high=bounds[1])
    _, result = await run_of(judge, width=200, children=12)
    finished: list[Any] = [one.score for one in result.candidates if one.finish_reason == "stop"]
    assert result.score == max(finished)


async def test_given_answers_compete(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 3)
        params = {"width": 2, "children": 2, "exploration": 0.0}
        outcome = await search.delegate("mcts", params, Limits(), given=mine, last=True)
        assert set(mine) <= {one.branch for one in outcome.candidates}
        best = max(mine, key=any_answer)
        assert outcome.chosen is best
        return outcome

    def any_answer(branch: Any) -> float:
        return any_value(branch.text)

    judge = ToyJudge(lambda text: any_value(text) if len(text) == 6 else 0.0)
    await try_out(body, ToyEngine(lines), judge)
