"""Parts of `particle_filter` that the laws of all strategies do not reach."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from search.base import Outcome
from search.run import Result, Run
from search.search import Search
from tests.search_harness import TryOut, first, request, result_of
from tests.toy_engine import END, ToyEngine, ToyJudge


def lines(text: str) -> Mapping[str, float]:
    """Four lines of one letter."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.5, "b": 0.5} if len(text) < 8 else {END: 1.0}


def short_or_long(text: str) -> Mapping[str, float]:
    """An answer that ends after one line or after four."""
    if len(text) % 2:
        return {"\n": 1.0}
    if text == "a\n" or len(text) == 8:
        return {END: 1.0}
    return {"a": 0.5, "b": 0.5}


def many_a(text: str) -> float:
    """0.9 when every line is an a; odds fall by 9 with every b."""
    odds = 9.0 ** (1 - text.count("b"))
    return odds / (1 + odds)


async def run_of(
    params: Mapping[str, Any], table: Any = lines, judge: Any = many_a, seed: int = 7
) -> tuple[Result, list[dict[str, Any]]]:
    engine = ToyEngine(table)
    run = Run(request("particle_filter", params, seed=seed), engine=engine, judge=ToyJudge(judge))
    result = await run.result()
    assert not engine.claims
    return result, run.tree.snapshot()["nodes"]


def copies_at(nodes: list[dict[str, Any]], depth: int) -> list[int]:
    return [one["resampled"] for one in nodes if one["depth"] == depth and one["resampled"]]


async def test_better_particles_get_more_copies() -> None:
    result, nodes = await run_of({"width": 16})
    assert result.answers[0].content == "a\na\na\na\n"
    # No resampling after the last line, and the sixteen stay sixteen.
    assert [sum(copies_at(nodes, depth)) for depth in (1, 2, 3)] == [16, 16, 16]
    first = [one for one in nodes if one["depth"] == 1]
    by_text = {letter: 0 for letter in "ab"}
    for one in first:
        by_text[one["text"][0]] += one["resampled"] or 0
    assert by_text["a"] > 10 > 4 > by_text["b"]


async def test_the_trigger() -> None:
    _, nodes = await run_of({"width": 8, "resample_trigger": 0.0})
    assert not any(one["resampled"] for one in nodes)
    _, nodes = await run_of({"width": 8}, judge=lambda text: 0.5)
    assert copies_at(nodes, 1) == [1] * 8  # systematic, equal weights: everyone goes on
    _, nodes = await run_of({"width": 8, "resample_trigger": 0.9}, judge=lambda text: 0.5)
    assert not any(one["resampled"] for one in nodes)


async def test_one_particle_is_a_plain_sample() -> None:
    engine, judge = ToyEngine(lines), ToyJudge(many_a)
    for seed in range(5):
        alone = await result_of(engine, "particle_filter", {"width": 1}, judge=judge, seed=seed)
        assert alone.spent.generated_tokens == len(alone.answers[0].content) + 1
        assert alone.tree.nodes == 6


@pytest.mark.parametrize("name", ["particle_filter", "entropic_particle_filter"])
async def test_one_particle_is_drawn_step_by_step_like_any_answer(
    name: str, try_out: TryOut
) -> None:
    """Whatever the judge says and however its weights are tempered."""

    async def plain(search: Search) -> Outcome:
        branch = search.root
        while branch.finish is None:
            (branch,) = await search.expand(branch, 1, search.stepwise())
        return first(search, [branch])

    for seed in range(5):
        alone = await result_of(
            ToyEngine(lines), name, {"width": 1}, judge=ToyJudge(many_a), seed=seed
        )
        walked = await try_out(plain, ToyEngine(lines), seed=seed)
        assert alone.answers[0].token_ids == walked.answers[0].token_ids


async def test_finished_particles_keep_their_place() -> None:
    """With absorption the open ones share what is left; none is extended after its end."""
    result, nodes = await run_of({"width": 8, "resample_trigger": 1.0}, short_or_long)
    short = [one for one in nodes if one["depth"] == 2 and one["finish"]]
    assert short
    assert not any(one["resampled"] for one in short)
    assert sum(copies_at(nodes, 2)) == 8 - len(short)
    assert len(result.candidates) == 8


async def test_competing_finished_particles_crowd_out_the_others() -> None:
    """The finished answer is all a, so it takes nearly every place, as in the published code."""
    params = {"width": 8, "finished_policy": "compete"}
    _, nodes = await run_of(params, short_or_long)
    short = [one for one in nodes if one["depth"] == 2 and one["finish"]]
    assert sum(one["resampled"] or 0 for one in short) > len(short)
    open_copies = sum(one["resampled"] or 0 for one in nodes if one["depth"] == 2) - sum(
        one["resampled"] or 0 for one in short
    )
    grown = [one for one in nodes if one["depth"] == 3]
    assert len(grown) == open_copies


async def test_the_best_finished_particle_is_never_lost() -> None:
    """its_hub resamples once more at the end and may drop it (spec, pitfall 1)."""
    for scheme in ("multinomial", "systematic"):
        for seed in range(30):
            params = {"width": 4, "resampling": scheme, "finished_policy": "compete"}
            result, nodes = await run_of(params, short_or_long, seed=seed)
            best = max(one["score"] for one in nodes if one["finish"])
            assert result.answers[0].score == best


@pytest.mark.parametrize("choose", ["best", "vote", "sample"])
async def test_choosing(choose: str) -> None:
    def table(text: str) -> Mapping[str, float]:
        return {"5": 0.34, "7": 0.33, "8": 0.33} if not text else {END: 1.0}

    values = {"5": 0.6, "7": 0.5, "8": 0.1}
    winners = set()
    for seed in range(20):
        result, nodes = await run_of(
            {"width": 9, "choose": choose}, table, values.__getitem__, seed
        )
        texts = [one["text"] for one in nodes if one["depth"] == 1]
        answer = result.answers[0].content
        winners.add(answer)
        weights = {text: texts.count(text) * values[text] / (1 - values[text]) for text in texts}
        if choose == "best":
            assert answer == max(texts, key=values.__getitem__)
        elif choose == "vote":
            assert weights[answer] == pytest.approx(max(weights.values()))
        assert len(result.candidates) == 9
    assert len(winners) > (choose != "best")


async def test_a_failed_judgement_is_replaced() -> None:
    def judge(text: str) -> float:
        return float("nan") if text == "b\n" else 0.5

    _, nodes = await run_of({"width": 8, "resample_trigger": 0.5}, judge=judge)
    failed = [one for one in nodes if one["depth"] == 1 and one["text"] == "b\n"]
    assert failed
    assert sum(copies_at(nodes, 1)) == 8
    assert not any(one["resampled"] for one in failed)


async def test_steps_are_limited() -> None:
    result, nodes = await run_of({"width": 4, "max_depth": 2})
    assert result.tree.depth == 2
    assert result.answers[0].finish_reason == "length"
    assert not copies_at(nodes, 2)


async def test_a_judge_of_log_odds_is_taken_at_its_word() -> None:
    judge = ToyJudge(lambda text: 3.0 - 4.0 * text.count("b"))
    judge.info = replace(judge.info, low=-100.0, high=100.0)
    result = await result_of(ToyEngine(lines), "particle_filter", {"width": 16}, judge=judge)
    assert result.answers[0].content == "a\na\na\na\n"
    assert result.answers[0].score == 3.0
