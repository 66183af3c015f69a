"""Parts of `ets` that its worked examples and laws do not reach."""

import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from search import embedders
from search.cover import KeepProblem, clusters_of, solve
from search.embedders import tfidf
from search.errors import InvalidParameter
from search.run import Run
from tests.search_harness import request, result_of
from tests.toy_engine import END, ToyEngine, ToyJudge


def lines(text: str) -> dict[str, float]:
    """Lines of one letter, four of them."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.5, "b": 0.3, "c": 0.2} if len(text) < 8 else {END: 1.0}


def many_a(text: str) -> float:
    return text.count("a") / 4


def install_minilm(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """A module of that name whose model counts letters."""

    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            if error is not None:
                raise error

        def encode(
            self, texts: list[str], batch_size: int, show_progress_bar: bool | None = None
        ) -> np.ndarray:
            assert show_progress_bar is False  # the server's stderr is a log
            return np.array([[text.count(letter) for letter in "abc"] for text in texts])

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr("search.strategies.ets.has_minilm", lambda: True)
    embedders._minilm_model.cache_clear()


async def test_minilm_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    install_minilm(monkeypatch)
    params = {"width": 8, "embedder": "minilm"}
    result = await result_of(ToyEngine(lines), "ets", params, judge=ToyJudge(many_a))
    assert len(result.candidates) == 8
    embedders._minilm_model.cache_clear()


async def test_minilm_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install_minilm(monkeypatch, OSError("no weights here"))
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    run = Run(request("ets", {"embedder": "minilm"}), engine=engine, judge=judge)
    with pytest.raises(InvalidParameter, match="no weights here"):
        await run.result()
    assert not engine.claims
    embedders._minilm_model.cache_clear()


def test_minilm_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.strategies.ets.has_minilm", lambda: False)
    with pytest.raises(InvalidParameter, match="sentence-transformers") as caught:
        Run(request("ets", {"embedder": "minilm"}), engine=ToyEngine(), judge=ToyJudge(many_a))
    assert caught.value.param == "bough.params.embedder"
    assert embedders.has_minilm() in (True, False)


async def test_a_failing_solver_falls_back_to_rebase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.strategies.ets.solve", lambda problem: None)
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    run = Run(request("ets", {"width": 16, "lambda_b": 100.0}), engine=engine, judge=judge)
    await run.result()
    kept = [
        node["resampled"]
        for node in run.tree.snapshot()["nodes"]
        if node["depth"] == 1 and node["resampled"]
    ]
    assert sum(kept) == 16
    assert len(kept) > 1  # at this price the integer program keeps a single branch


def test_a_solver_that_runs_out_of_nodes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        success = False
        x = None

    monkeypatch.setattr("search.cover.milp", lambda *args, **options: Result())
    assert solve(KeepProblem([1], [(0, 1)], [], 1.0, 0.0)) is None


@pytest.mark.parametrize("embedder", ["hidden", "tfidf"])
async def test_wide_levels_are_computed_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, embedder: str
) -> None:
    threads: dict[str, set[threading.Thread]] = defaultdict(set)

    def noted(name: str, compute: Callable[..., Any], size: Callable[[Any], int]) -> Any:
        def run(*given: Any) -> Any:
            if size(given[0]) > 8:
                threads[name].add(threading.current_thread())
            return compute(*given)

        return run

    ets = "search.strategies.ets"
    monkeypatch.setattr(f"{ets}.solve", noted("solve", solve, lambda one: len(one.weights)))
    monkeypatch.setattr(f"{ets}.clusters_of", noted("clusters", clusters_of, len))
    monkeypatch.setattr("search.embedders.tfidf", noted("tfidf", tfidf, len))
    params = {"width": 16, "embedder": embedder}
    result = await result_of(ToyEngine(lines), "ets", params, judge=ToyJudge(many_a))
    wanted = {"solve", "clusters"} | ({"tfidf"} if embedder == "tfidf" else set())
    assert set(threads) == wanted
    assert all(threading.current_thread() not in used for used in threads.values())
    again = await result_of(ToyEngine(lines), "ets", params, judge=ToyJudge(many_a))
    assert again.candidates == result.candidates


async def test_a_high_price_keeps_one_branch() -> None:
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    params = {"width": 32, "lambda_b": 100.0, "lambda_d": 0.0}
    run = Run(request("ets", params), engine=engine, judge=judge)
    await run.result()
    kept = [node for node in run.tree.snapshot()["nodes"] if node["resampled"]]
    assert [node["resampled"] for node in kept] == [32, 32, 32, 32]


async def test_the_depth_is_limited() -> None:
    for strategy in ("ets", "beam"):
        engine, judge = ToyEngine(lines), ToyJudge(many_a)
        params = {"width": 4, "max_depth": 2}
        result = await result_of(engine, strategy, params, judge=judge)
        assert result.tree.depth == 2
        assert len(result.answers[0].content) == 4
        assert result.answers[0].finish_reason == "length"
        assert result.stop_reason == "done"


async def test_covered_clusters_keep_a_continuation() -> None:
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    wide = {"width": 16, "softmax_temperature": 0.05, "lambda_b": 0.1, "lambda_d": 5.0}
    num_kept = {}
    for coverage in (False, True):
        request_ = request("ets", {**wide, "coverage": coverage})
        run = Run(request_, engine=engine, judge=judge)
        await run.result()
        nodes = run.tree.snapshot()["nodes"]
        level = [one for one in nodes if one["depth"] == 1 and one["resampled"]]
        num_kept[coverage] = {one["text"] for one in level}
        assert sum(one["resampled"] for one in level) == 16
    assert num_kept[False] == {"a\n"}
    assert num_kept[True] == {"a\n", "b\n", "c\n"}


def selections(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.tree.snapshot()["selections"]
    return found


async def test_every_selection_is_reported() -> None:
    params = {"width": 16, "softmax_temperature": 0.05, "lambda_b": 0.1, "lambda_d": 5.0}
    run = Run(request("ets", params), engine=ToyEngine(lines), judge=ToyJudge(many_a))
    await run.result()
    nodes = {node["id"]: node for node in run.tree.snapshot()["nodes"]}
    assert [one["depth"] for one in selections(run)] == [1, 2, 3, 4]
    for one in selections(run):
        level = [node for node in nodes.values() if node["depth"] == one["depth"]]
        kept = [node for node in level if node["resampled"]]
        assert (one["leaves"], one["kept_leaves"]) == (len(level), len(kept))
        assert one["nodes"] == len(ancestors(nodes, level))
        assert one["kept_nodes"] == len(ancestors(nodes, kept))
        assert one["clusters"] == len({node["text"] for node in level})
        assert one["kept_clusters"] == len({node["text"] for node in kept})
        assert one["is_solved"]
        assert one["solver_ms"] > 0
    # the program covers a, b and c; at this temperature the allocation leaves only a
    first = selections(run)[0]
    assert (first["clusters"], first["kept_clusters"], first["lost_clusters"]) == (3, 1, 2)
    assert first["lost_leaves"] >= 2


def ancestors(nodes: dict[int, dict[str, Any]], leaves: list[dict[str, Any]]) -> set[int]:
    found: set[int] = set()
    for leaf in leaves:
        at: int | None = leaf["id"]
        while at is not None:
            found.add(at)
            at = nodes[at]["parent"]
    return found


async def test_coverage_loses_nothing() -> None:
    params = {"width": 16, "softmax_temperature": 0.05, "lambda_b": 0.1, "lambda_d": 5.0}
    run = Run(
        request("ets", {**params, "coverage": True}),
        engine=ToyEngine(lines),
        judge=ToyJudge(many_a),
    )
    await run.result()
    assert selections(run)
    assert {(one["lost_leaves"], one["lost_clusters"]) for one in selections(run)} == {(0, 0)}


async def test_a_failed_solver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.strategies.ets.solve", lambda problem: None)
    run = Run(request("ets", {"width": 4}), engine=ToyEngine(lines), judge=ToyJudge(many_a))
    await run.result()
    assert not any(one["is_solved"] for one in selections(run))


async def test_long_steps_cost_more_where_tokens_count() -> None:
    def long_or_short(text: str) -> dict[str, float]:
        line = text.rsplit("\n", 1)[-1]
        if text.count("\n") == 2:
            return {END: 1.0}
        if not line:
            return {"a": 0.5, "b": 0.5}
        return {"\n": 1.0} if line[0] == "a" or len(line) == 30 else {"b": 1.0}

    params = {"width": 16, "lambda_b": 1.9, "lambda_d": 0.0, "softmax_temperature": 5.0}
    kept = {}
    for node_cost in ("uniform", "tokens"):
        run = Run(
            request("ets", {**params, "node_cost": node_cost}, max_tokens=80),
            engine=ToyEngine(long_or_short),
            judge=ToyJudge(lambda text: 0.5 + 0.1 * text.startswith("b")),
        )
        await run.result()
        level = [one for one in run.tree.snapshot()["nodes"] if one["depth"] == 1]
        kept[node_cost] = {one["text"][0] for one in level if one["resampled"]}
    assert "b" in kept["uniform"]
    assert kept["tokens"] == {"a"}


def test_tfidf_of_nothing_is_zero() -> None:
    assert tfidf(["", "  "]).tolist() == [[0.0], [0.0]]
    assert tfidf(["", "a 1"])[0].tolist() == [0.0, 0.0]
