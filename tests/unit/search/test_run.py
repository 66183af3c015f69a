"""Runs as a whole: refusals, budgets, deadlines, failures."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from engines.base import Capability, Prefix, Sampling
from engines.errors import ContextLengthExceeded, EngineClosed, UnsupportedByEngine
from reward_models.base import Candidate, RewardKind, Score
from reward_models.errors import RewardInputError, RewardUnavailable
from search.errors import (
    BrokenContract,
    BudgetExhausted,
    InvalidParameter,
    MissingRewardModel,
    StrategyNotFound,
    UnknownParameter,
)
from search.run import Run
from tests.search_harness import pieces_of, request, result_of
from tests.toy_denoiser import ToyDiffusionEngine, uniform
from tests.toy_engine import END, ToyEngine, ToyJudge, babble, one_of

WORDS = one_of({"one\n": 0.25, "two\n": 0.25, "three\n": 0.5})


def by_length(text: str) -> float:
    return len(text) / 100


def refused(strategy: str, **params: object) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the caller looks at it
        Run(request(strategy, params), engine=ToyEngine(), judge=ToyJudge(by_length))
    return caught.value


def test_unknown_strategy_names_near_matches() -> None:
    error = refused("best_of")
    assert isinstance(error, StrategyNotFound)
    assert error.near == ("best_of_n",)
    assert error.param == "bough.strategy"
    assert "best_of_n" in str(error)
    assert "there are" in str(refused("zzzzzz"))


def test_unknown_parameter_names_near_matches() -> None:
    error = refused("ets", lamda_b=1.0)
    assert isinstance(error, UnknownParameter)
    assert (error.param, error.near[0]) == ("bough.params.lamda_b", "lambda_b")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("width", "16", "type"),
        ("width", 1.5, "type"),
        ("width", 0, "value"),
        ("lambda_b", math.nan, "value"),
        ("lambda_b", -1.0, "value"),
        ("softmax_temperature", 0.0, "value"),
        ("aggregate", "median", "value"),
        ("coverage", "yes", "type"),
    ],
)
def test_invalid_parameter(name: str, value: object, kind: str) -> None:
    error = refused("ets", **{name: value})
    assert isinstance(error, InvalidParameter)
    assert (error.param, error.kind) == (f"bough.params.{name}", kind)


def test_a_missing_judge_is_named() -> None:
    with pytest.raises(MissingRewardModel, match="best_of_n") as caught:
        Run(request("best_of_n"), engine=ToyEngine())
    assert caught.value.param == "bough.reward_model"
    Run(request("self_consistency"), engine=ToyEngine())
    with pytest.raises(MissingRewardModel):
        Run(request("self_consistency", {"vote": "weighted"}), engine=ToyEngine())


def test_a_missing_capability_is_named() -> None:
    engine = ToyEngine(without=[Capability.TOKENS])
    with pytest.raises(UnsupportedByEngine) as caught:
        Run(request("beam"), engine=engine, judge=ToyJudge(by_length))
    assert caught.value.capability == Capability.CONTINUE_TEXT


async def test_a_run_is_used_once() -> None:
    run = Run(request("single"), engine=ToyEngine(WORDS))
    await run.result()
    with pytest.raises(BrokenContract, match="once"):
        await run.result()


async def test_time_begins_with_the_run_and_not_before() -> None:
    now = [0.0]
    engine = ToyEngine(one_of({"abcdef": 1.0}))
    run = Run(request("single", wall_ms=1000), engine=engine, clock=lambda: now[0])
    now[0] = 5.0  # it waited for a place
    result = await run.result()
    assert (result.answers[0].content, result.stop_reason) == ("abcdef", "done")
    assert result.spent.wall_ms == 0


async def test_single_streams_token_by_token() -> None:
    engine = ToyEngine(one_of({"abcdef": 1.0}))
    run = Run(request("single", sampling=Sampling(max_tokens=9, logprobs=1)), engine=engine)
    pieces, result = await pieces_of(run)
    assert [piece.text for piece in pieces] == list("abcdef")
    (answer,) = result.answers
    assert (answer.content, answer.finish_reason, answer.score) == ("abcdef", "stop", None)
    assert tuple(one for piece in pieces for one in piece.logps) == answer.logps
    assert tuple(one for piece in pieces for one in piece.top_logps or ()) == answer.top_logps
    assert result.stop_reason == "done"
    assert result.spent.generated_tokens == 7
    assert result.spent.wasted_tokens == 1  # the end token


async def test_n_answers_are_distinct_and_the_first_is_the_streamed_one() -> None:
    engine = ToyEngine(WORDS)
    run = Run(request("single", answers=6), engine=engine)
    pieces, result = await pieces_of(run)
    texts = [answer.content for answer in result.answers]
    assert len(set(texts)) == len(texts) <= 3
    assert len(result.candidates) == 6
    assert "".join(piece.text for piece in pieces) == texts[0] == result.candidates[0].content


async def test_stop_strings_and_lengths_end_the_whole_answer() -> None:
    engine = ToyEngine(one_of({"ab\ncd\nef": 1.0}))
    stopped = await result_of(engine, "single", sampling=Sampling(stop=("d",), max_tokens=9))
    assert (stopped.answers[0].content, stopped.answers[0].finish_reason) == ("ab\nc", "stop")
    judge = ToyJudge(by_length)
    cut = await result_of(engine, "beam", {"width": 2}, judge=judge, max_tokens=4)
    assert (cut.answers[0].content, cut.answers[0].finish_reason) == ("ab\nc", "length")
    assert cut.stop_reason == "done"


async def test_tokens_left_are_shared_and_cut_what_does_not_fit() -> None:
    engine = ToyEngine(one_of({"x" * 30: 1.0}))
    judge = ToyJudge(by_length)
    result = await result_of(engine, "best_of_n", {"width": 4}, judge=judge, generated_tokens=22)
    assert [one.content for one in result.candidates] == ["xxxxx"] * 4
    assert result.answers[0].finish_reason == "length"
    assert result.stop_reason == "budget"
    assert result.spent.generated_tokens == 20


async def test_fewer_tokens_than_children() -> None:
    engine = ToyEngine(one_of({"x" * 30: 1.0}))
    result = await result_of(engine, "self_consistency", {"width": 8}, generated_tokens=3)
    assert [one.content for one in result.candidates] == ["x"] * 3
    assert result.stop_reason == "budget"


async def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    engine = ToyEngine(WORDS)
    free = await result_of(engine, "self_consistency", {"width": 4})
    # shares of 10 tokens are less than the 40 allowed, but every answer fits
    bound = await result_of(engine, "self_consistency", {"width": 4}, generated_tokens=40)
    assert bound.answers == free.answers
    assert bound.stop_reason == "done"


async def test_candidates_and_reward_calls_are_limited() -> None:
    engine, judge = ToyEngine(WORDS), ToyJudge(by_length)
    result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge, candidates=3)
    assert (len(result.candidates), result.stop_reason) == (3, "budget")
    result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge, reward_calls=2)
    answers = {one.content for one in result.candidates}
    assert (len(answers), result.stop_reason) == (2, "budget")
    assert (result.spent.reward_calls, result.spent.candidates) == (2, 8)
    result = await result_of(engine, "best_of_n", {"width": 4}, judge=judge, reward_calls=0)
    assert result.answers[0].content.strip()
    assert (result.score, result.stop_reason) == (None, "budget")


@pytest.mark.parametrize("limits", [{"generated_tokens": 0}, {"candidates": 0}])
async def test_nothing_produced_is_an_error(limits: dict[str, int]) -> None:
    engine = ToyEngine(WORDS)
    (name,) = limits
    with pytest.raises(BudgetExhausted, match=name):
        await Run(request("single", **limits), engine=engine).result()
    assert not engine.claims


async def test_only_denoisers_spend_denoiser_evaluations() -> None:
    result = await Run(request("single", nfe=0), engine=ToyEngine(WORDS)).result()
    assert (result.stop_reason, result.spent.nfe) == ("done", 0)
    denoiser = ToyDiffusionEngine(uniform("ab"), 4)
    with pytest.raises(BudgetExhausted, match="nfe"):
        await Run(request("single", nfe=0), engine=denoiser).result()


class Clock:
    """Advances by a tick whenever the engine gives something."""

    def __init__(self, tick_s: float) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += self.tick_s


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "self_consistency", "beam", "ets"])
async def test_the_deadline_cuts_what_is_in_flight(strategy: str) -> None:
    engine, judge = ToyEngine(one_of({"x" * 30: 1.0})), ToyJudge(by_length)
    clock = Clock(10.0)
    engine.on_item = clock.tick
    run = Run(request(strategy, wall_ms=275_000), engine=engine, judge=judge, clock=clock)
    pieces, result = await pieces_of(run)
    assert result.stop_reason == "deadline"
    assert result.answers[0].content.startswith("x")
    assert result.answers[0].finish_reason == "length"
    assert "".join(piece.text for piece in pieces) == result.answers[0].content
    assert result.spent.wall_ms >= 275_000
    assert not engine.claims
    assert not judge.claims


@pytest.mark.parametrize(("wall_ms", "is_read"), [(None, False), (600_000, False), (60_000, True)])
async def test_tokens_in_flight_are_read_where_the_deadline_may_cut_them(
    wall_ms: int | None, is_read: bool
) -> None:
    class Asked(ToyEngine):
        def sample(self, prefix: Prefix, how: Sampling, **more: Any) -> Any:
            asked.append(how.deltas)
            return super().sample(prefix, how, **more)

    asked: list[bool] = []
    limits = {} if wall_ms is None else {"wall_ms": wall_ms}
    await result_of(Asked(one_of({"x" * 30: 1.0})), "single", **limits)
    assert asked == [is_read]


async def test_the_deadline_wakes_a_stuck_engine() -> None:
    engine = ToyEngine(one_of({"x" * 30: 1.0}))
    seen = 0

    def stick() -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            engine.gate = asyncio.Event()

    engine.on_item = stick
    result = await result_of(engine, "single", wall_ms=30)
    assert (result.answers[0].content, result.stop_reason) == ("xxxxx", "deadline")
    engine.gate = asyncio.Event()
    with pytest.raises(BudgetExhausted, match="time was up"):
        await Run(request("single", wall_ms=1), engine=engine).result()
    assert not engine.claims


async def test_the_deadline_wakes_a_stuck_judge() -> None:
    engine, judge = ToyEngine(WORDS), ToyJudge(by_length)
    judge.gate = asyncio.Event()
    result = await result_of(engine, "best_of_n", {"width": 3}, judge=judge, wall_ms=200)
    assert result.stop_reason == "deadline"
    assert result.answers[0].content.strip()
    assert result.spent.reward_calls == 2  # of the three answers two are equal
    assert not judge.claims


async def test_a_reward_that_is_not_a_number_drops_its_candidate() -> None:
    engine = ToyEngine(WORDS)
    judge = ToyJudge(lambda text: math.nan if text.startswith("three") else by_length(text))
    run = Run(request("best_of_n", {"width": 8}), engine=engine, judge=judge)
    result = await run.result()
    states = [node["state"] for node in run.tree.snapshot()["nodes"]]
    assert 0 < states.count("failed") == result.spent.dropped == 8 - len(result.candidates)
    assert not any(one.content.startswith("three") for one in result.candidates)


async def test_when_every_reward_fails_something_is_returned() -> None:
    engine, judge = ToyEngine(WORDS), ToyJudge(lambda _: math.inf)
    for strategy in ("best_of_n", "beam", "ets"):
        run = Run(request(strategy, {"width": 4}), engine=engine, judge=judge)
        pieces, result = await pieces_of(run)
        assert result.answers[0].content == "".join(piece.text for piece in pieces)
        assert result.answers[0].content.strip()
        assert result.score is None
        assert result.spent.dropped == 4


class PickyJudge(ToyJudge):
    """Refuses whole batches for one candidate it cannot read."""

    async def score(self, batch: list[Candidate]) -> list[Score]:  # type: ignore[override]
        if any(one.text.startswith("two") for one in batch):
            raise RewardInputError("cannot read two")
        return await super().score(batch)


async def test_an_unreadable_candidate_costs_only_itself() -> None:
    engine, judge = ToyEngine(WORDS), PickyJudge(by_length)
    result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge)
    assert 0 < result.spent.dropped < 8
    assert len(result.candidates) == 8 - result.spent.dropped


class BrokenJudge(ToyJudge):
    """Loses a score, or is gone."""

    gone = False

    async def score(self, batch: list[Candidate]) -> list[Score]:  # type: ignore[override]
        if self.gone:
            raise RewardUnavailable("gone")
        return (await super().score(batch))[1:]


async def test_a_broken_judge_is_an_error_and_leaves_nothing() -> None:
    for gone, error in [(True, RewardUnavailable), (False, BrokenContract)]:
        engine, judge = ToyEngine(WORDS), BrokenJudge(by_length)
        judge.gone = gone
        run = Run(request("ets", {"width": 4}), engine=engine, judge=judge)
        with pytest.raises(error):
            await run.result()
        assert not engine.claims
        assert not judge.claims
        assert run.tree.snapshot()["stop_reason"] == "error"


async def test_engine_errors_come_out_as_they_are() -> None:
    engine, judge = ToyEngine(WORDS), ToyJudge(by_length)
    await engine.aclose()
    with pytest.raises(EngineClosed):
        await Run(request("ets"), engine=engine, judge=judge).result()
    with pytest.raises(ContextLengthExceeded):
        await Run(request("single"), engine=ToyEngine(context_tokens=3)).result()

    engine = ToyEngine(babble)
    failing = [engine.aclose]

    def close() -> None:
        if failing:
            engine._is_closed = bool(failing.pop())

    engine.on_item = close
    with pytest.raises(EngineClosed):
        await Run(request("beam", {"width": 4}), engine=engine, judge=judge).result()
    assert not engine.claims


async def test_process_and_outcome_judges_both_serve() -> None:
    engine = ToyEngine(one_of({"aa\nb\n": 0.5, "a\nbb\n": 0.5}))
    values = {"aa\n": 0.1, "aa\nb\n": 0.9, "a\n": 0.7, "a\nbb\n": 0.8}
    for how, best in [("last", "aa\nb\n"), ("min", "a\nbb\n"), ("mean", "a\nbb\n")]:
        judge = ToyJudge(values.__getitem__)
        params = {"width": 8, "aggregate": how}
        result = await result_of(engine, "best_of_n", params, judge=judge)
        assert result.answers[0].content == best
        assert judge.batches == [2]  # equal answers are judged once
        judge = ToyJudge(values.__getitem__)
        judge.info = replace(judge.info, aggregate=how)
        result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge)
        assert result.answers[0].content == best, "its authors' way is the default"
    judge = ToyJudge(values.__getitem__, RewardKind.OUTCOME)
    result = await result_of(engine, "best_of_n", {"width": 8, "aggregate": "prod"}, judge=judge)
    assert (result.answers[0].content, result.score) == ("aa\nb\n", 0.9)


async def test_candidates_reach_the_judge_whole() -> None:
    engine, judge = ToyEngine(one_of({"a\nThe answer is 4.\nmore": 1.0})), ToyJudge(by_length)
    result = await result_of(engine, "beam", {"width": 1}, judge=judge)
    assert result.answers[0].content == "a\nThe answer is 4.\n"
    assert result.answers[0].finish_reason == "stop"
    first, last = judge.seen
    assert (first.steps, first.is_finished) == (("a\n",), False)
    assert (last.steps, last.is_finished) == (("a\n", "The answer is 4.\n"), True)
    assert last.token_ids == engine.encode(last.text)
    assert last.messages == request("beam").messages
    assert last.claim is first.claim is not None


async def test_the_question_may_contain_the_answer_phrase() -> None:
    engine, judge = ToyEngine(one_of({"a\nb\n": 1.0})), ToyJudge(by_length)
    asked = request("ets", {"width": 2})
    message = {"role": "user", "content": "The answer is what?"}
    object.__setattr__(asked, "messages", (message,))
    result = await Run(asked, engine=engine, judge=judge).result()
    assert result.answers[0].content == "a\nb\n"


async def test_ignored_parameters_are_listed() -> None:
    engine = ToyEngine(WORDS, without=[Capability.SEED, Capability.HIDDEN_STATES])
    judge = ToyJudge(by_length)
    how = Sampling(max_tokens=20, seed=3)
    result = await result_of(engine, "single", sampling=how)
    assert result.ignored == ("seed",)
    engine.table = lambda text: {"a": 0.5, "b": 0.5} if len(text) % 2 == 0 else {"\n": 1.0}
    params = {"width": 4, "embedder": "hidden"}
    result = await result_of(engine, "ets", params, judge=judge, max_tokens=8)
    assert result.ignored == ("bough.params.embedder",)
    result = await result_of(engine, "ets", {"width": 4}, judge=judge, max_tokens=8)
    assert result.ignored == ()


async def test_the_size_of_the_tree() -> None:
    table = one_of({"aa\nb": 0.5, "aa\ncc": 0.5})
    engine, judge = ToyEngine(table), ToyJudge(by_length)
    run = Run(request("beam", {"width": 2, "keep": 1}), engine=engine, judge=judge)
    result = await run.result()
    texts = sorted(branch.text for branch in run.tree.branches)
    assert texts[:3] == ["", "aa\n", "aa\n"]
    prompt, tree = result.prompt_tokens, result.tree
    below = sum(len(text) - 3 for text in texts[3:])
    assert (tree.nodes, tree.depth) == (5, 2)
    assert tree.unique_tokens == prompt + 3 + 3 + below
    assert tree.logical_tokens == (prompt + 3) + 2 * (prompt + 3) + below
    assert prompt + 6 <= tree.peak_kv_tokens <= tree.unique_tokens
    one = await result_of(engine, "single")
    assert one.tree.unique_tokens == one.tree.logical_tokens == one.tree.peak_kv_tokens


async def test_empty_answers_are_answers() -> None:
    engine = ToyEngine(lambda text: {END: 1.0})
    result = await result_of(engine, "single")
    assert (result.answers[0].content, result.answers[0].finish_reason) == ("", "stop")
    engine = ToyEngine(one_of({"": 0.5, "words": 0.5}))
    judge = ToyJudge(lambda text: 1.0 - len(text) / 100)
    result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge)
    assert result.answers[0].content == "words"
