"""Adaptive consistency draws as many answers as it takes, and no more."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.answers import extract_answer
from search.base import Outcome
from search.budget import Limits
from search.posterior import StopRule, is_certain, is_decided
from search.search import Search
from search.select import vote
from tests.search_harness import TryOut, result_of
from tests.toy_engine import ToyEngine, one_of

ALIKE = one_of({"so 4": 0.5, "it is 4": 0.5})
MIXED = one_of({"The answer is 4.": 0.6, "so 5": 0.3, "hm 6": 0.1})
SLOW_AND_QUICK = one_of({"4": 0.6, "let me think about this for long: 5": 0.4})


async def test_four_that_agree_are_enough() -> None:
    result = await result_of(ToyEngine(ALIKE), "adaptive_consistency")
    assert result.spent.candidates == 4
    assert (result.score, result.stop_reason) == (1.0, "done")


async def test_a_certain_vote_ends_before_the_posterior_would() -> None:
    result = await result_of(ToyEngine(ALIKE), "adaptive_consistency", {"width": 5})
    assert result.spent.candidates == 3, "two more could not draw level with three"
    result = await result_of(
        ToyEngine(ALIKE), "adaptive_consistency", {"width": 9, "threshold": 1.0}
    )
    assert result.spent.candidates == 5


async def test_without_answers_it_draws_them_all() -> None:
    engine = ToyEngine(one_of({"who knows": 1.0}))
    result = await result_of(engine, "adaptive_consistency", {"width": 6})
    assert result.spent.candidates == 6
    assert result.answers[0].content == "who knows"


async def test_what_still_runs_is_cancelled_and_paid_for() -> None:
    """Sixteen at once: quick answers decide while slow ones are under way."""
    slow, few = ToyEngine(SLOW_AND_QUICK), {"width": 16, "concurrency": 16, "threshold": 0.6}
    seen_waste = 0
    for seed in range(8):
        result = await result_of(slow, "adaptive_consistency", few, seed=seed)
        shown = sum(one.num_tokens for one in result.candidates)
        spent = result.spent
        assert spent.candidates == 16
        # eos of every finished answer is an overrun, and the discarded drew the rest
        kept = result.tree.unique_tokens - result.prompt_tokens
        assert spent.generated_tokens == kept + spent.wasted_tokens
        assert spent.generated_tokens >= shown
        seen_waste = max(seen_waste, spent.wasted_tokens)
    assert seen_waste > 16


async def test_more_at_once_gives_the_same_answer() -> None:
    for seed in range(30):
        params: dict[str, Any] = {"width": 12, "threshold": 0.9}
        few = await result_of(ToyEngine(MIXED), "adaptive_consistency", params, seed=seed)
        many = await result_of(
            ToyEngine(MIXED), "adaptive_consistency", {**params, "concurrency": 12}, seed=seed
        )
        assert few.answers[0].content == many.answers[0].content
        assert few.spent.candidates <= many.spent.candidates == 12


async def test_an_answer_that_cannot_matter_is_not_waited_for() -> None:
    table = one_of({"4": 0.75, "well, " + "on and on, " * 12 + "5": 0.25})
    params = {"width": 8, "threshold": 1.0, "concurrency": 8}
    early = 0
    for seed in range(12):
        result = await result_of(
            ToyEngine(table), "adaptive_consistency", params, seed=seed, max_tokens=160
        )
        full = await result_of(
            ToyEngine(table), "self_consistency", {"width": 8}, seed=seed, max_tokens=160
        )
        if (full.score or 0) > 0.5:
            assert result.answers[0].content == full.answers[0].content
            early += result.spent.generated_tokens < full.spent.generated_tokens
    assert early


async def test_the_budget_ends_it() -> None:
    result = await result_of(ToyEngine(MIXED), "adaptive_consistency", candidates=2)
    assert (result.spent.candidates, result.stop_reason) == (2, "budget")
    assert len(result.candidates) == 2


async def test_given_answers_have_votes(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 4)
        outcome = await search.delegate("adaptive_consistency", {}, Limits(), given=mine)
        assert {one.branch for one in outcome.candidates} == set(mine)
        return outcome

    assert (await try_out(body, ToyEngine(ALIKE))).spent.candidates == 4


@pytest.mark.parametrize("rule", ["beta", "dirichlet"])
@settings(deadline=None, max_examples=25)
@given(
    width=st.integers(1, 12),
    concurrency=st.integers(1, 12),
    threshold=st.floats(0.51, 1),
    seed=st.integers(0, 10**6),
)
async def test_laws(
    rule: StopRule, width: int, concurrency: int, threshold: float, seed: int
) -> None:
    """Never more than the width; the full vote's answer wherever the votes made it certain."""
    engine = ToyEngine(MIXED)
    params = {
        "width": width,
        "concurrency": concurrency,
        "threshold": threshold,
        "stop_rule": rule,
    }
    result = await result_of(engine, "adaptive_consistency", params, seed=seed)
    full = await result_of(engine, "self_consistency", {"width": width}, seed=seed)
    answers = [extract_answer(one.content) for one in result.candidates]
    groups = vote(answers, [1.0] * len(answers))
    counts, left = [group.weight for group in groups], width - len(answers)
    assert result.spent.candidates <= width
    assert is_decided(counts, left, threshold, rule) or left == 0
    if is_certain(counts, left) or left == 0:
        assert result.answers[0].content == full.answers[0].content
