"""Plain REBASE, and what `ets` shares with it."""

import re
from collections import Counter

from search.run import Run
from search.select import rebase_counts
from tests.search_harness import request
from tests.toy_engine import END, ToyEngine, ToyJudge


def lines(text: str) -> dict[str, float]:
    """Lines of one letter; the third says the answer."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.4, "b": 0.3, "c": 0.3} if len(text) < 6 else {END: 1.0}


def many_a(text: str) -> float:
    return round(0.1 + 0.3 * text.count("a"), 5)


async def test_every_level_is_shared_out_by_the_rule() -> None:
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    run = Run(request("rebase", {"width": 12}), engine=engine, judge=judge)
    result = await run.result()
    nodes = run.tree.snapshot()["nodes"]
    for depth in (1, 2, 3):
        level = [one for one in nodes if one["depth"] == depth]
        counts = rebase_counts([one["score"] for one in level], 12, 0.2)
        assert [one["resampled"] or 0 for one in level] == counts
        born = Counter(one["parent"] for one in nodes if one["depth"] == depth + 1)
        assert [born[one["id"]] for one in level] == counts
        assert all(one["state"] == "pruned" for one in level if not one["resampled"])
    assert result.spent.candidates == 48
    assert len(result.candidates) == 12
    assert not engine.claims
    assert not run.tree.snapshot()["selections"]


async def test_ended_branches_use_up_width() -> None:
    def some_end(text: str) -> dict[str, float]:
        if len(text) % 2:
            return {"\n": 1.0}
        return {"a": 0.5, "b": 0.3, END: 0.2} if len(text) < 20 else {END: 1.0}

    run = Run(request("rebase", {"width": 16}), engine=ToyEngine(some_end), judge=ToyJudge(many_a))
    result = await run.result()
    nodes = run.tree.snapshot()["nodes"]
    ended = 0
    for depth in range(1, max(one["depth"] for one in nodes) + 1):
        level = [one for one in nodes if one["depth"] == depth]
        assert len(level) == 16 - ended
        ended += sum(one["finish"] is not None for one in level)
    assert ended == 16 == len(result.candidates)


async def test_ets_whose_nodes_cost_nothing_is_rebase() -> None:
    grown = {}
    for name, free in (("rebase", {}), ("ets", {"lambda_b": 0.0, "lambda_d": 0.0})):
        run = Run(
            request(name, {"width": 16, **free}), engine=ToyEngine(lines), judge=ToyJudge(many_a)
        )
        await run.result()
        grown[name] = [
            {key: value for key, value in node.items() if key != "why"}
            for node in run.tree.snapshot()["nodes"]
        ]
    assert grown["ets"] == grown["rebase"]


async def test_the_deadline_or_depth_leaves_the_best_open_branch() -> None:
    run = Run(
        request("rebase", {"width": 6, "max_depth": 2}),
        engine=ToyEngine(lines),
        judge=ToyJudge(many_a),
    )
    result = await run.result()
    assert re.fullmatch(r"(.\n){2}", result.answers[0].content)
    assert result.score == max(one.score or 0.0 for one in result.candidates)
    assert result.answers[0].finish_reason == "length"
