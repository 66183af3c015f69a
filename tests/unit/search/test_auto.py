"""Auto stops where it may, and spends where it must."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import Capability, Sampling
from engines.errors import UnsupportedByEngine
from reward_models.base import RewardKind
from search.base import Outcome
from search.budget import Limits
from search.run import Run
from search.search import Search
from tests.search_harness import TryOut, request, result_of
from tests.toy_engine import ToyEngine, ToyJudge, one_of

EASY = one_of({"so\nit is 4": 0.5, "well\nit is 4": 0.5})
HARD = one_of({f"so\nit is {digit}": 1 / 8 for digit in range(1, 9)})
TEXTS = one_of({"who knows": 0.5, "not I": 0.5})


def judge_of(value: float, kind: RewardKind = RewardKind.PROCESS) -> ToyJudge:
    return ToyJudge(lambda text: value, kind)


async def test_agreement_stops() -> None:
    result = await result_of(ToyEngine(EASY), "auto", {"look": 4})
    assert result.resolved == "auto: stop, 4 of 4 samples agree (96 % sure)"
    assert (result.spent.candidates, result.score) == (4, 1.0)


async def test_disagreement_without_a_judge_draws_more() -> None:
    result = await result_of(ToyEngine(HARD), "auto")
    assert result.resolved.startswith("auto: adaptive_consistency, ")
    assert 2 < result.spent.candidates <= 12


@pytest.mark.parametrize("tree", ["ets", "rebase", "beam"])
async def test_disagreement_with_a_judge_of_steps_grows_a_tree(tree: str) -> None:
    judge = judge_of(0.1)
    result = await result_of(ToyEngine(HARD), "auto", {"tree": tree}, judge=judge, seed=5)
    assert result.resolved.startswith(f"auto: {tree}, ")
    assert result.tree.depth == 2
    assert not judge.claims


async def test_a_judge_that_doubts_an_agreement_is_heard() -> None:
    params = {"tree": "none", "look": 4, "width": 16}
    result = await result_of(ToyEngine(EASY), "auto", params, judge=judge_of(0.02))
    assert result.resolved == (
        "auto: self_consistency, 4 of 4 samples agree, judged 0.02 (38 % sure)"
    )
    assert result.spent.candidates == 16


async def test_a_judge_that_is_sure_saves_samples() -> None:
    result = await result_of(ToyEngine(EASY), "auto", {"look": 2}, judge=judge_of(0.95))
    assert result.resolved == "auto: stop, 2 of 2 samples agree, judged 0.95 (99 % sure)"
    assert result.spent.candidates == 2


async def test_the_judge_says_which_of_two_answers_leads() -> None:
    judge = ToyJudge(lambda text: 0.98 if text.endswith("7") else 0.1)
    for seed in range(12):
        result = await result_of(ToyEngine(HARD), "auto", judge=judge, seed=seed)
        if result.resolved.startswith("auto: stop"):
            assert result.answers[0].content.endswith("7")
            return
    raise AssertionError("no first look drew a 7")


async def test_no_tree_where_none_can_grow() -> None:
    params: dict[str, Any] = {"tree": "beam"}
    judge = judge_of(0.1, RewardKind.OUTCOME)
    result = await result_of(ToyEngine(HARD), "auto", params, judge=judge)
    assert result.resolved.startswith("auto: self_consistency, ")
    assert result.ignored == ("bough.params.tree",)
    whole = ToyEngine(HARD, without=[Capability.TOKENS, Capability.CONTINUE_TEXT])
    result = await result_of(whole, "auto", judge=judge_of(0.1))
    assert result.resolved.startswith("auto: self_consistency, ")
    assert result.ignored == ()


async def test_a_tree_must_fit_the_budget() -> None:
    for name, amount in (("generated_tokens", 120), ("candidates", 20)):
        limits: dict[str, Any] = {name: amount}
        result = await result_of(ToyEngine(HARD), "auto", judge=judge_of(0.1), seed=5, **limits)
        assert result.resolved.startswith("auto: self_consistency, ")


async def test_an_option_that_steps_do_not_survive() -> None:
    class Whole(ToyEngine):
        def check_sampling(self, how: Sampling) -> None:
            if how.boundaries:
                raise UnsupportedByEngine("boundaries", "toy")

    result = await result_of(Whole(HARD), "auto", judge=judge_of(0.1), seed=5)
    assert result.resolved.startswith("auto: adaptive_consistency, ")
    assert result.resolved.endswith("beam cannot carry boundaries")


async def test_texts_that_state_no_answer() -> None:
    result = await result_of(ToyEngine(TEXTS), "auto")
    assert result.resolved == ("auto: stop, no sample comes to an answer, and there is no judge")
    judge = ToyJudge(lambda text: 0.9 if text == "not I" else 0.1)
    result = await result_of(ToyEngine(TEXTS), "auto", {"width": 12}, judge=judge)
    assert result.resolved == "auto: best_of_n, no sample comes to an answer"
    assert (result.answers[0].content, result.spent.candidates) == ("not I", 12)


async def test_cut_samples_do_not_agree() -> None:
    result = await result_of(ToyEngine(EASY), "auto", max_tokens=6)
    assert result.resolved == "auto: stop, no sample comes to an answer, and there is no judge"
    assert result.answers[0].finish_reason == "length"


async def test_values_outside_0_to_1_are_log_odds() -> None:
    judge = judge_of(3.0)
    judge.info = replace(judge.info, low=-10.0, high=10.0)
    result = await result_of(ToyEngine(EASY), "auto", {"look": 2}, judge=judge)
    assert "judged 0.95" in result.resolved


async def test_what_is_given_is_looked_at(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 4)
        return await search.delegate("auto", {}, Limits(), given=mine)

    result = await try_out(body, ToyEngine(EASY))
    assert result.spent.candidates == 4
    assert result.resolved == "made: stop, 4 of 4 samples agree (96 % sure)"


@settings(deadline=None, max_examples=30)
@given(
    width=st.integers(1, 10),
    look=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    value=st.none() | st.floats(0, 1),
)
async def test_never_more_than_the_width(
    width: int, look: int, seed: int, value: float | None
) -> None:
    judge = None if value is None else judge_of(value)
    params = {"width": width, "look": look}
    run = Run(request("auto", params, seed=seed), engine=ToyEngine(HARD), judge=judge)
    result = await run.result()
    assert sum(one.finish is not None for one in run.tree.branches) <= width
    assert result.resolved.isascii()
    assert result.answers[0].content
