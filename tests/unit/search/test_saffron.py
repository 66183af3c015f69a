"""Saffron's conduct: what it asks, what it keeps, what it pays, what it streams."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from engines.base import Capability, ChatMessage, NextTokens, Prefix, Sampling
from engines.errors import UnsupportedByEngine
from reward_models.base import Claim, RewardRow
from reward_models.conformance import CHECKS, Check, Subject, run_check
from search.base import Outcome
from search.budget import Limits
from search.errors import MissingRewardModel
from search.run import Piece, Result, Run, RunRequest
from search.search import Search
from tests.search_harness import LETTERS, TryOut, first, pieces_of, request, result_of
from tests.toy_engine import (
    END,
    MESSAGES,
    ToyEngine,
    ToyJudge,
    ToyMultifurcation,
    one_of,
)


def flat(text: str) -> dict[str, float]:
    """Four letters, and an end that the nucleus always holds."""
    return {"a": 0.3, "b": 0.25, "c": 0.2, END: 0.15, "d": 0.1}


def many_a(text: str) -> float:
    """More for every a; an end is worth a little more than going on from there."""
    return text.count("a") - 0.5 * text.count("b") + (0.25 if text.endswith(END) else 0.0)


def value_of_unit(text: str) -> float:
    return (len(text) % 7) / 7


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_the_toy_judge_keeps_the_laws(check: Check) -> None:
    await run_check(check, Subject(lambda: ToyMultifurcation(value_of_unit)))


@pytest.mark.parametrize("width", [1, 3, 8])
async def test_a_forward_for_each_live_answer_and_none_for_candidates(width: int) -> None:
    engine, judge = ToyEngine(flat), ToyMultifurcation(many_a)
    run = Run(request("saffron", {"width": width}, max_tokens=6), engine=engine, judge=judge)
    result = await run.result()
    nodes = run.tree.snapshot()["nodes"]
    live = [
        sum(node["depth"] == depth and node["finish"] is None for node in nodes)
        for depth in range(6)
    ]
    assert judge.forwards == [one for one in live if one]
    assert max(judge.forwards) <= width
    assert engine.calls["next_logprobs"] == len(judge.forwards)
    assert result.spent.reward_calls == sum(judge.forwards)
    assert not judge.batches  # nothing is judged beside
    assert result.spent.generated_tokens == len(nodes) - 1
    assert result.spent.candidates == width
    # The question's token and every token with something live below it, each once.
    assert result.spent.reward_tokens == judge.stats().tokens_computed == 1 + sum(live[1:])


async def test_policy_and_rewards_are_asked_side_by_side() -> None:
    """Each waits until the other has been asked: for ever, if one came after the other."""
    meeting = asyncio.Barrier(2)

    class Rewards(ToyMultifurcation):
        async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
            await meeting.wait()
            return await super().next_rewards(claims)

    class Policy(ToyEngine):
        async def next_logprobs(self, prefixes: Sequence[Prefix], **how: Any) -> list[NextTokens]:
            await meeting.wait()
            return await super().next_logprobs(prefixes, **how)

    engine, judge = Policy(flat), Rewards(many_a)
    result = await result_of(
        engine, "saffron", {"width": 2}, judge=judge, max_tokens=4, wall_ms=20_000
    )
    assert result.stop_reason == "done"
    assert len(judge.forwards) == engine.calls["next_logprobs"] == 4


async def test_every_node_keeps_its_score_and_the_best_wins() -> None:
    engine, judge = ToyEngine(flat), ToyMultifurcation(many_a)
    run = Run(request("saffron", {"width": 3}, max_tokens=4), engine=engine, judge=judge)
    result = await run.result()
    for node in run.tree.snapshot()["nodes"][1:]:
        branch = run.tree.branch(node["id"])
        ended = END if branch.is_finished else ""
        assert node["score"] == pytest.approx(many_a(branch.text + ended))
    # Three a and an end are worth more than less, and less than four a.
    assert [one.content for one in result.candidates] == ["aaaa", "aaa", "aaac"]
    assert [one.score for one in result.candidates] == [4.0, 3.25, 3.0]
    assert [one.finish_reason for one in result.candidates] == ["length", "stop", "length"]


async def test_a_finished_answer_leaves_when_others_are_worth_more() -> None:
    engine, judge = ToyEngine(flat), ToyMultifurcation(many_a)
    run = Run(request("saffron", {"width": 2}, max_tokens=4), engine=engine, judge=judge)
    await run.result()
    ended = [one for one in run.tree.snapshot()["nodes"] if one["finish"] == "stop_token"]
    assert any(one["state"] == "pruned" for one in ended)


async def test_the_end_can_be_the_best_token() -> None:
    def ending(text: str) -> float:
        return 9.0 if text == f"b{END}" else float("b" in text)

    result = await result_of(
        ToyEngine(flat), "saffron", {"width": 4}, judge=ToyMultifurcation(ending), max_tokens=20
    )
    assert (result.answers[0].content, result.score) == ("b", 9.0)
    assert result.answers[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("params", "sampling"),
    [({"min_new_tokens": 3}, Sampling(max_tokens=6)), ({}, Sampling(max_tokens=6, min_tokens=3))],
)
async def test_no_end_before_its_time(params: dict[str, Any], sampling: Sampling) -> None:
    def eager(text: str) -> dict[str, float]:
        return {END: 0.97, "a": 0.02, "b": 0.01}

    judge = ToyMultifurcation(lambda text: 5.0 if text.endswith(END) else -float(len(text)))
    result = await result_of(
        ToyEngine(eager), "saffron", {"width": 2, **params}, judge=judge, sampling=sampling
    )
    # The nucleus of the rest: a has 2/3 of it, so b belongs to it as well.
    assert {one.content for one in result.candidates} == {"aaa", "aab"}
    assert {one.finish_reason for one in result.candidates} == {"stop"}


async def test_banned_tokens_do_not_come_however_likely() -> None:
    sampling = Sampling(max_tokens=8, ban_ids=frozenset({ord("a")}))
    table = {"": {"a": 1 - 1e-7, "b": 1e-7}}
    engine = ToyEngine(lambda text: table.get(text, {END: 1.0}))
    result = await result_of(
        engine, "saffron", {"width": 1}, judge=ToyMultifurcation(many_a), sampling=sampling
    )
    assert result.answers[0].content == "b"


async def test_forbidden_tokens_do_not_come_and_a_forbidden_nucleus_ranks_last() -> None:
    def never_b(text: str) -> float:
        return math.nan if "b" in text else -math.inf if "c" in text else float(len(text))

    judge = ToyMultifurcation(never_b)
    result = await result_of(ToyEngine(flat), "saffron", {"width": 4}, judge=judge, max_tokens=3)
    assert not {"b", "c"} & set("".join(one.content for one in result.candidates))
    nothing = ToyMultifurcation(lambda text: -math.inf)
    result = await result_of(ToyEngine(flat), "saffron", {"width": 4}, judge=nothing, max_tokens=3)
    assert [(one.content, one.score) for one in result.candidates] == [("aaa", -1024.0)]


async def test_what_is_decided_is_streamed_before_the_end() -> None:
    engine = ToyEngine(one_of({"xxxxa": 0.5, "xxxxb": 0.3, "xxxya": 0.2}))
    judge = ToyMultifurcation(lambda text: float(len(text)) + 0.1 * text.count("b"))
    run = Run(request("saffron", {"width": 3, "top_p": 0.99}), engine=engine, judge=judge)
    pieces, result = await pieces_of(run)
    assert "".join(one.text for one in pieces) == result.answers[0].content == "xxxxb"
    assert [one.text for one in pieces][:3] == ["x", "x", "x"]
    ids = tuple(token for one in pieces for token in one.token_ids)
    assert ids == result.answers[0].token_ids
    assert result.answers[0].logps == pytest.approx((0, 0, 0, math.log(0.8), math.log(0.375)))


async def test_an_answer_begun_by_the_user_goes_on() -> None:
    """Prefilled: the engine reads the beginning, the judge is opened on it."""
    opened: list[Sequence[ChatMessage]] = []

    class Noting(ToyMultifurcation):
        async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
            opened.append(messages)
            return await super().open(messages, tenant=tenant)

    engine = ToyEngine(one_of({"Sure, yes": 0.5, "Sure, no": 0.5}))
    messages: tuple[ChatMessage, ...] = (*MESSAGES, {"role": "assistant", "content": "Sure, "})
    asked = RunRequest(
        strategy="saffron",
        params={"width": 2},
        messages=messages,
        sampling=Sampling(max_tokens=8),
        seed=1,
        continue_final=True,
    )
    run = Run(asked, engine=engine, judge=Noting(lambda text: float("no" in text)))
    result = await run.result()
    assert result.answers[0].content == "no"
    assert opened == [messages]


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        (Limits(generated_tokens=7), {"generated_tokens": 7}),
        (Limits(reward_calls=5), {"reward_calls": 5}),
        (Limits(candidates=2), {"candidates": 2}),
    ],
)
async def test_limits_end_it_with_the_best_so_far(limits: Limits, spent: dict[str, int]) -> None:
    judge = ToyMultifurcation(many_a)
    asked = {name: bound for name, bound in vars(limits).items() if bound is not None}
    result = await result_of(
        ToyEngine(flat), "saffron", {"width": 3}, judge=judge, max_tokens=6, **asked
    )
    assert result.stop_reason == "budget"
    assert set(result.answers[0].content) == {"a"}
    assert {name: getattr(result.spent, name) for name in spent} == spent


async def test_the_deadline_ends_it_with_the_best_so_far() -> None:
    engine, judge = ToyEngine(flat), ToyMultifurcation(many_a)

    def stick() -> None:
        if engine.calls["next_logprobs"] == 3:
            judge.gate = asyncio.Event()

    engine.on_item = stick
    result = await result_of(
        engine, "saffron", {"width": 2}, judge=judge, max_tokens=9, wall_ms=200
    )
    assert (result.stop_reason, result.answers[0].content) == ("deadline", "aa")
    assert not judge.claims


async def test_a_cancelled_run_gives_everything_back() -> None:
    engine, judge, asked = ToyEngine(flat), ToyMultifurcation(many_a), asyncio.Event()
    judge.gate = asyncio.Event()  # nobody opens it
    engine.on_item = asked.set
    run = Run(request("saffron", {"width": 2}), engine=engine, judge=judge)
    task = asyncio.create_task(run.result())
    await asked.wait()
    await asyncio.sleep(0)
    assert engine.claims
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not engine.claims
    assert not judge.claims


async def test_given_answers_compete(try_out: TryOut) -> None:
    judge = ToyMultifurcation(many_a)

    async def body(search: Search) -> Outcome:
        (given,) = await search.extend([(search.root, (*b"aaaaaaaa", *search.engine.eos_ids))])
        inner = await search.delegate(
            "saffron", {"width": 2}, Limits(generated_tokens=8), given=[given]
        )
        assert inner.chosen is given
        assert inner.candidates[0].score == 8.0
        assert len(inner.candidates) == 2
        return inner

    await try_out(body, ToyEngine(flat), judge)


async def test_what_it_cannot_use_is_said() -> None:
    sampling = Sampling(max_tokens=4, temperature=0.3, top_p=0.5, logit_bias={97: -100.0})
    result = await result_of(
        ToyEngine(flat), "saffron", judge=ToyMultifurcation(many_a), sampling=sampling
    )
    assert result.ignored == ("temperature", "top_p", "logit_bias")
    assert set(result.answers[0].content) == {"a"}


async def test_the_answer_does_not_depend_on_the_seed() -> None:
    judge = ToyMultifurcation(many_a)
    texts = {
        (await result_of(ToyEngine(flat), "saffron", judge=judge, max_tokens=5, seed=seed))
        .answers[0]
        .content
        for seed in range(4)
    }
    assert texts == {"aaaaa"}


def test_refusals_come_before_any_work() -> None:
    engine = ToyEngine(LETTERS)
    with pytest.raises(MissingRewardModel, match="'toy-judge' is of kind process"):
        Run(request("saffron"), engine=engine, judge=ToyJudge(len))
    with pytest.raises(MissingRewardModel, match="another"):
        Run(request("saffron"), engine=engine, judge=ToyMultifurcation(len, "other"))
    with pytest.raises(MissingRewardModel, match="saffron"):
        Run(request("saffron"), engine=engine)
    bare = ToyEngine(LETTERS, without=[Capability.NEXT_LOGPROBS])
    with pytest.raises(UnsupportedByEngine, match="next_logprobs"):
        Run(request("saffron"), engine=bare, judge=ToyMultifurcation(len))
    assert not engine.calls


async def test_claims_go_back_as_the_beam_moves_on() -> None:
    engine, judge = ToyEngine(flat), ToyMultifurcation(many_a)
    most = [0, 0]

    def look() -> None:
        most[:] = max(most[0], len(engine.claims)), max(most[1], len(judge.claims))

    engine.on_item = look
    run = Run(request("saffron", {"width": 3}, max_tokens=12), engine=engine, judge=judge)
    items = [item async for item in run.stream()]
    assert isinstance(items[-1], Result)
    assert any(isinstance(item, Piece) for item in items)
    assert most[0] <= 3
    assert most[1] <= 4  # the beam's, and the question's


async def test_children_of_last_stand_for_their_parents(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        pair = await search.extend([(search.root, (97,)), (search.root, (97, 98))], last=True)
        return first(search, pair[::-1])

    pieces, result = await pieces_of(try_out.run(body, ToyEngine(LETTERS)))
    assert [one.text for one in pieces] == ["a", "b"]
    assert result.answers[0].content == "ab"
