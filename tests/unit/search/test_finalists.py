"""Saffron's last beam, ranked again by another judge: who is asked, who pays, who is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from engines.base import Sampling
from reward_models.base import RewardKind
from reward_models.errors import RewardUnavailable
from search.base import Outcome
from search.budget import Limits
from search.errors import InvalidParameter, MissingRewardModel
from search.result import Asked
from search.run import Result, Run, RunRequest
from search.search import Search
from tests.search_harness import LETTERS, TryOut, first, pieces_of
from tests.toy_engine import END, MESSAGES, ToyEngine, ToyJudge, ToyMultifurcation


def flat(text: str) -> dict[str, float]:
    return {"a": 0.3, "b": 0.25, "c": 0.2, END: 0.15, "d": 0.1}


def many_a(text: str) -> float:
    return text.count("a") - 0.5 * text.count("b") + (0.25 if text.endswith(END) else 0.0)


def few_a(text: str) -> float:
    return -float(text.count("a"))


def run_of(
    judge: ToyJudge,
    *,
    width: int = 3,
    params: dict[str, Any] | None = None,
    engine: ToyEngine | None = None,
    **limits: int,
) -> Run:
    asked = RunRequest(
        strategy="saffron",
        params={"width": width, "finalist_judge": "second", **(params or {})},
        messages=MESSAGES,
        sampling=Sampling(max_tokens=4),
        seed=1,
        limits=Limits(**limits),
    )
    rows = ToyMultifurcation(many_a)
    return Run(asked, engine=engine or ToyEngine(flat), judge=rows, further={"second": judge})


def outcome_judge(value: Callable[[str], float]) -> ToyJudge:
    return ToyJudge(value, RewardKind.OUTCOME)


def said(result: Result) -> list[tuple[str, float | None]]:
    return [(one.content, one.score) for one in result.candidates]


async def test_the_last_beam_is_ranked_by_the_second_judge() -> None:
    second, engine = outcome_judge(few_a), ToyEngine(flat)
    run = run_of(second, engine=engine)
    pieces, result = await pieces_of(run)
    # By tokens it is aaaa, aaa, aaac. Ties keep that order.
    assert said(result) == [("aaa", -3.0), ("aaac", -3.0), ("aaaa", -4.0)]
    assert "".join(one.text for one in pieces) == result.answers[0].content == "aaa"
    assert result.resolved == "saffron: last beam judged again"
    assert second.batches == [3]
    assert not engine.claims
    assert not second.claims


async def test_its_calls_are_counted_and_told_apart() -> None:
    alone = run_of(outcome_judge(few_a), params={"finalist_judge": None})
    plain = await alone.result()
    result = await run_of(outcome_judge(few_a)).result()
    assert result.spent.reward_calls == plain.spent.reward_calls + 3
    assert result.further == (Asked("second", 3, len("aaaa") + len("aaa") + len("aaac")),)
    assert result.spent.reward_tokens - plain.spent.reward_tokens == result.further[0].tokens
    assert plain.further == ()
    assert plain.resolved == "saffron"


async def test_calls_for_the_last_beam_are_set_aside() -> None:
    full = (await run_of(outcome_judge(few_a)).result()).spent.reward_calls
    second = outcome_judge(few_a)
    result = await run_of(second, reward_calls=full - 1).result()
    assert result.stop_reason == "budget"
    assert second.batches  # the search gave way, not the second look
    assert result.spent.reward_calls <= full - 1


async def test_without_enough_calls_the_search_has_all_of_them() -> None:
    second = outcome_judge(few_a)
    result = await run_of(second, reward_calls=3).result()
    assert result.stop_reason == "budget"
    assert not second.batches
    assert result.resolved == "saffron"
    assert (result.answers[0].content, result.spent.reward_calls) == ("aa", 3)


async def test_what_it_cannot_value_is_left_out() -> None:
    second = outcome_judge(lambda text: math.nan if text == "aaa" else few_a(text))
    result = await run_of(second).result()
    assert said(result) == [("aaac", -3.0), ("aaaa", -4.0)]
    assert result.spent.dropped == 1
    nothing = outcome_judge(lambda text: math.nan)
    result = await run_of(nothing).result()
    assert said(result) == [("aaaa", 4.0), ("aaa", 3.25), ("aaac", 3.0)]


async def test_it_judges_what_the_model_wrote() -> None:
    second = outcome_judge(few_a)
    asked = RunRequest(
        strategy="saffron",
        params={"width": 2, "finalist_judge": "second"},
        messages=(*MESSAGES, {"role": "assistant", "content": "aa"}),
        sampling=Sampling(max_tokens=2),
        seed=1,
        continue_final=True,
    )
    rows = ToyMultifurcation(many_a)
    result = await Run(
        asked, engine=ToyEngine(flat), judge=rows, further={"second": second}
    ).result()
    assert {one.text for one in second.seen} == {one.content for one in result.candidates}
    assert all(one.messages == MESSAGES for one in second.seen)


async def test_the_one_that_is_gone_is_named() -> None:
    class Gone(ToyJudge):
        async def score(self, batch: Any) -> Any:
            raise RewardUnavailable("closed")

    gone = Gone(few_a, RewardKind.OUTCOME)
    with pytest.raises(RewardUnavailable) as caught:
        await run_of(gone).result()
    assert caught.value.model_id == gone.info.model_id


def test_an_unknown_one_is_refused_before_any_work() -> None:
    with pytest.raises(InvalidParameter, match="'other'") as caught:
        run_of(outcome_judge(few_a), params={"finalist_judge": "other"})
    assert caught.value.param == "bough.params.finalist_judge"
    with pytest.raises(InvalidParameter):
        run_of(outcome_judge(few_a), params={"finalist_judge": ""})


async def test_only_judges_that_a_parameter_names_are_asked(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        (child,) = await search.expand(search.root, 1)
        with pytest.raises(MissingRewardModel):
            await search.score_by("second", [child])
        return first(search, [child])

    await try_out(body, ToyEngine(LETTERS))
