"""`particle_gibbs` and `entropic_particle_filter`, and what all particle filters report."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from search.base import Outcome
from search.budget import Limits
from search.run import Result, Run
from search.search import Search
from tests.search_harness import TryOut, request
from tests.toy_engine import END, ToyEngine, ToyJudge

FILTERS = ("particle_filter", "particle_gibbs", "entropic_particle_filter")


def lines(text: str) -> Mapping[str, float]:
    """Four lines of one letter."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.5, "b": 0.5} if len(text) < 8 else {END: 1.0}


def ragged(text: str) -> Mapping[str, float]:
    """Lines of one letter, one to four of them."""
    if len(text) % 2:
        return {"\n": 1.0}
    if not text:
        return {"a": 0.5, "b": 0.5}
    return {"a": 0.3, "b": 0.3, END: 0.4} if len(text) < 8 else {END: 1.0}


def many_a(text: str) -> float:
    """0.9 when every line is an a; odds fall by 9 with every b."""
    odds = 9.0 ** (1 - text.count("b"))
    return odds / (1 + odds)


def early_sure(text: str) -> float:
    """Sure that the first line is an a; later it sees nothing wrong with b."""
    first = 0.9999 if text.startswith("a") else 0.2
    return first if len(text) <= 2 else 0.5


async def run_of(
    name: str,
    params: Mapping[str, Any],
    table: Callable[[str], Mapping[str, float]] = lines,
    judge: Callable[[str], float] = many_a,
    seed: int = 7,
    **limits: Any,
) -> tuple[Result, dict[str, Any]]:
    engine, toy = ToyEngine(table), ToyJudge(judge)
    run = Run(request(name, params, seed=seed, **limits), engine=engine, judge=toy)
    result = await run.result()
    assert not engine.claims
    assert not toy.claims
    return result, run.tree.snapshot()


@pytest.mark.parametrize("name", FILTERS)
async def test_draws_are_reported(name: str) -> None:
    _, tree = await run_of(name, {"width": 8})
    sweeps = 2 if name == "particle_gibbs" else 1
    assert [one["depth"] for one in tree["selections"]] == [1, 2, 3, 4] * sweeps
    for one in tree["selections"]:
        assert one["particles"] == 8
        assert 1 <= one["first_steps"] <= one["ancestors"] <= 8
        assert 1 <= one["effective_size"] <= 8
        assert one["temperature"] >= 1


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("mode", ["fixed", "reference"])
async def test_good_particles_are_found(name: str, mode: str) -> None:
    for weights in ("odds_prefix", "incremental"):
        params = {"width": 12, "mode": mode, "weights": weights}
        result, _ = await run_of(name, params)
        assert result.answers[0].content.count("a") >= 3


@pytest.mark.parametrize("name", FILTERS)
async def test_what_a_request_names_wins_over_its_mode(name: str) -> None:
    params = {"width": 6, "mode": "reference", "finished_policy": "absorb"}
    for seed in range(3):
        result, tree = await run_of(name, params, ragged, seed=seed)
        ended = {one["id"] for one in tree["nodes"] if one["finish"]}
        drawn = {one["id"] for one in tree["nodes"] if one["resampled"]}
        assert not ended & drawn
        assert result.answers[0].branch in ended


async def test_annealing_keeps_more_ancestors() -> None:
    """Paired by seed: of eight first steps few are a, and the judge is too sure of those."""

    def rarely_a(text: str) -> Mapping[str, float]:
        return {"a": 0.2, "b": 0.8} if not text else lines(text)

    plain: list[dict[str, Any]] = []
    annealed: list[dict[str, Any]] = []
    for seed in range(10):
        for name, kept in (("particle_filter", plain), ("entropic_particle_filter", annealed)):
            _, tree = await run_of(name, {"width": 8}, rarely_a, early_sure, seed)
            kept.append(tree["selections"][0])
    for cold, warm in zip(plain, annealed, strict=True):
        assert warm["effective_size"] == cold["effective_size"]
        assert warm["ancestors"] >= cold["ancestors"]
        assert (warm["temperature"] > 1) == (warm["effective_size"] < 4)
    assert sum(one["ancestors"] for one in annealed) > 1.3 * sum(one["ancestors"] for one in plain)


async def test_without_a_threshold_it_is_a_particle_filter() -> None:
    params = {"width": 8}
    plain, tree = await run_of("particle_filter", params)
    cold, other = await run_of("entropic_particle_filter", {**params, "ess_threshold": 0.0})
    assert other == tree
    assert cold.candidates == plain.candidates


@pytest.mark.parametrize("lookahead", ["product", "successor", "mean"])
async def test_successors_are_reused(lookahead: str) -> None:
    """With reuse only what was drawn twice costs more than a filter without look-ahead."""
    params = {"width": 8, "lookahead": lookahead}
    for reuse in (True, False):
        result, tree = await run_of(
            "entropic_particle_filter", {**params, "reuse_successor": reuse}
        )
        looks = [one for one in tree["nodes"] if one["why"] == "a look-ahead"]
        assert bool(looks) is not reuse
        assert len(result.candidates) >= 8
        grown = [one for one in tree["nodes"] if one["depth"] == 2]
        ancestors = tree["selections"][0]["ancestors"]
        fresh = 8 - ancestors if reuse else 8
        assert len(grown) == 8 + fresh


async def test_a_look_ahead_sees_what_the_judge_will_say() -> None:
    """Of equal first lines those go on whose sampled second line is good."""

    def second(text: str) -> float:
        return 0.5 if len(text) <= 2 else 0.99 if text[2] == "a" else 0.01

    params = {"width": 8, "lookahead": "product", "ess_threshold": 0.0, "max_depth": 2}
    for seed in range(5):
        _, tree = await run_of("entropic_particle_filter", params, judge=second, seed=seed)
        nodes = {one["id"]: one for one in tree["nodes"]}
        first_child = {one["parent"]: one for one in reversed(tree["nodes"]) if one["depth"] == 2}
        went_on = [one for one in nodes.values() if one["depth"] == 1 and one["resampled"]]
        assert went_on
        assert all(first_child[one["id"]]["text"] == "a\n" for one in went_on)


async def test_the_reference_enters_with_the_score_of_its_own_prefix() -> None:
    """A judge that likes only whole answers must not let the reference win the first draw.

    its_hub lets it compete with the score of its end, where it would be nearly the only ancestor.
    """

    def late(text: str) -> float:
        return 0.999 if len(text) == 8 else 0.5

    params = {"width": 6, "iterations": 3}
    _, tree = await run_of("particle_gibbs", params, judge=late)
    first = [one for one in tree["selections"] if one["depth"] == 1]
    assert len(first) == 3
    assert [one["effective_size"] for one in first] == [6, 6, 6]
    assert [one["particles"] for one in first] == [6, 6, 6]


async def test_fresh_particles_of_a_sweep() -> None:
    """Five roots and a reference: every later sweep draws width - 1 first steps."""
    _, tree = await run_of("particle_gibbs", {"width": 6, "iterations": 4})
    assert len([one for one in tree["nodes"] if one["depth"] == 1]) == 6 + 3 * 5


async def test_the_reference_may_be_an_ancestor() -> None:
    """Under a judge that finds it alone good, the others go on from its prefix."""
    params = {"width": 4, "iterations": 6}
    heirs = 0
    for seed in range(5):
        _, tree = await run_of("particle_gibbs", params, seed=seed)
        children = Counter(one["parent"] for one in tree["nodes"] if one["parent"])
        heirs += sum(n > 4 for n in children.values())
    assert heirs


async def test_one_sweep_is_a_particle_filter() -> None:
    params = {"width": 8, "resampling": "multinomial"}
    plain, tree = await run_of("particle_filter", params)
    alone, other = await run_of("particle_gibbs", {**params, "iterations": 1})
    assert other == tree
    assert alone.candidates == plain.candidates


@pytest.mark.parametrize("mode", ["fixed", "reference"])
async def test_ragged_sweeps_end(mode: str) -> None:
    for weights in ("odds_prefix", "incremental", "raw_softmax"):
        for seed in range(6):
            params = {"width": 4, "iterations": 3, "mode": mode, "weights": weights}
            result, tree = await run_of("particle_gibbs", params, ragged, seed=seed)
            assert result.answers[0].finish_reason == "stop"
            best = max(one["score"] for one in tree["nodes"] if one["finish"])
            if mode == "fixed":
                assert result.answers[0].score == best


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("policy", ["absorb", "compete"])
async def test_given_answers_take_places(name: str, policy: str, try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 3)
        params = {"width": 5, "finished_policy": policy}
        outcome = await search.delegate(name, params, Limits(), given=mine)
        steps = [one for one in search.tree.branches if one.depth == 1 and one not in mine]
        assert len(steps) == 2 + 4 * (name == "particle_gibbs")
        assert set(mine) <= {one.branch for one in outcome.candidates}
        few = await search.delegate(name, {**params, "width": 2}, Limits(), given=mine)
        assert set(mine) <= {one.branch for one in few.candidates}
        return outcome

    await try_out(body, ToyEngine(lines), ToyJudge(many_a))
