"""What strategies may use, tried by small strategies made here."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import pytest

from engines.base import Capability, Finish, Sampling
from reward_models.base import Claim, RewardKind, RewardRow
from search.base import Outcome, Ranked
from search.branch import Branch
from search.budget import Limits
from search.errors import (
    BrokenContract,
    BudgetExhausted,
    MissingRewardModel,
    PluginError,
    StrategyNotFound,
)
from search.plugins import Plugins, load
from search.run import Result, Run
from search.search import Search
from tests.search_harness import Body, pieces_of, register, request
from tests.toy_engine import END, MESSAGES, ToyEngine, ToyJudge, one_of

LETTERS = one_of({"abc": 0.5, "abd": 0.25, "xyz": 0.25})


@pytest.fixture
def try_out(monkeypatch: pytest.MonkeyPatch) -> "TryOut":
    return TryOut(monkeypatch)


@dataclass
class TryOut:
    """Runs a coroutine as a strategy."""

    monkeypatch: pytest.MonkeyPatch

    def run(
        self, body: Body, engine: ToyEngine, judge: ToyJudge | None = None, **more: object
    ) -> Run:
        register(self.monkeypatch, made=body)
        return Run(request("made", **more), engine=engine, judge=judge)  # type: ignore[arg-type]

    async def __call__(
        self, body: Body, engine: ToyEngine, judge: ToyJudge | None = None, **more: object
    ) -> Result:
        result = await self.run(body, engine, judge, **more).result()
        assert not engine.claims
        assert judge is None or not judge.claims
        return result


def first(search: Search, branches: Sequence[Branch]) -> Outcome:
    return search.outcome([Ranked(one) for one in branches])


async def test_expand_together_is_one_batch(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\nb\nc\n": 1.0}))

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 3, search.stepwise())
        groups = await asyncio.gather(*(search.expand(one, 2, search.stepwise()) for one in level))
        ids = [[child.id for child in group] for group in groups]
        assert ids == [[4, 5], [6, 7], [8, 9]]
        # 9 tokens for 6 children that want 2 each: one each
        assert [[child.text for child in group] for group in groups] == [["a\nb"] * 2] * 3
        return first(search, groups[0])

    result = await try_out(body, engine, generated_tokens=15)
    assert result.spent.generated_tokens == 12
    assert result.stop_reason == "budget"


async def test_random_streams_follow_the_path_not_the_order(try_out: TryOut) -> None:
    engine = ToyEngine(lambda text: {"a": 0.5, "b": 0.5} if len(text) % 4 < 3 else {"\n": 1.0})
    seen: list[list[str]] = []

    def body(order: list[int]) -> Body:
        async def run(search: Search) -> Outcome:
            level = await search.expand(search.root, 2, search.stepwise())
            below = {at: await search.expand(level[at], 2, search.stepwise()) for at in order}
            seen.append([child.text for at in (0, 1) for child in below[at]])
            draws = [search.rng(level[0]).random(), search.rng().random()]
            assert draws == [search.rng(level[0]).random(), search.rng(search.root).random()]
            assert isinstance(search.rng(), random.Random)
            return first(search, below[0])

        return run

    await try_out(body([0, 1]), engine)
    await try_out(body([1, 0]), engine)
    assert seen[0] == seen[1]


async def test_expand_iter_yields_as_children_finish_and_discards_the_rest(
    try_out: TryOut,
) -> None:
    engine = ToyEngine(one_of({"a": 0.5, "b" * 20: 0.5}))

    async def body(search: Search) -> Outcome:
        stream = search.expand_iter(search.root, 8)
        async with aclosing(stream):
            async for child in stream:
                assert child.text == "a"
                break
        assert len(search.tree.branches) == 2
        again = await search.expand(search.root, 1)
        assert again[0].path == (8,)
        return first(search, [child])

    result = await try_out(body, engine)
    assert result.answers[0].content == "a"
    assert result.spent.candidates == 9
    assert result.spent.wasted_tokens > 2


async def test_forgotten_iterators_and_tasks_are_cleaned_up(try_out: TryOut) -> None:
    engine = ToyEngine(LETTERS)

    async def body(search: Search) -> Outcome:
        stream = search.expand_iter(search.root, 2)
        (keep,) = [await anext(stream)]
        engine.gate = asyncio.Event()
        left_alone.append(asyncio.create_task(search.expand(search.root, 2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left_alone.append(stream)
        return first(search, [keep])

    left_alone: list[object] = []
    await try_out(body, engine)


async def test_errors_of_one_branch_stop_the_others(try_out: TryOut) -> None:
    engine = ToyEngine(LETTERS)

    async def with_gather(search: Search) -> Outcome:
        await asyncio.gather(search.expand(search.root, 1), failing(search))
        raise AssertionError

    async def with_group(search: Search) -> Outcome:
        async with asyncio.TaskGroup() as group:
            group.create_task(search.expand(search.root, 1))
            group.create_task(failing(search))
        raise AssertionError

    async def failing(search: Search) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    for body in (with_gather, with_group):
        engine.gate = asyncio.Event()
        run = try_out.run(body, engine)
        with pytest.raises(ZeroDivisionError):
            await run.result()
        assert not engine.claims


async def test_budget_errors_in_a_group_end_with_the_best_branch(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        await search.expand(search.root, 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(search.ask(MESSAGES))
        raise AssertionError

    result = await try_out(body, ToyEngine(LETTERS), generated_tokens=3)
    assert (len(result.answers[0].content), result.stop_reason) == (3, "budget")


async def test_what_may_not_be_expanded(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\nb\n": 1.0}))

    async def body(search: Search) -> Outcome:
        one, two = await search.expand(search.root, 2, search.stepwise())
        search.prune([one], "test")
        search.prune([one], "twice is once")
        with pytest.raises(BrokenContract, match=f"branch {one.id}"):
            await search.expand(one, 1)
        (end,) = await search.expand(two, 1, last=True)
        for closed in (two, end):
            with pytest.raises(BrokenContract):
                await search.expand(closed, 1)
        assert await search.expand(search.root, 0) == []
        return first(search, [end])

    await try_out(body, engine)


async def test_pruning_while_children_are_in_flight(try_out: TryOut) -> None:
    engine = ToyEngine(LETTERS)

    async def body(search: Search) -> Outcome:
        stream = search.expand_iter(search.root, 1)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        search.prune([search.root], "no more")
        child = await task
        await stream.aclose()
        return first(search, [child])

    assert (await try_out(body, engine)).answers[0].content in ("abc", "abd", "xyz")


async def test_extend_appends_chosen_tokens(try_out: TryOut) -> None:
    engine = ToyEngine(LETTERS)
    (eos,) = engine.info.eos_ids

    async def body(search: Search) -> Outcome:
        a, b = await search.extend([(search.root, (97,)), (search.root, (97, 98))])
        assert (a.text, b.text, b.path) == ("a", "ab", (1,))
        assert b.logps == pytest.approx((np.log(0.75), 0.0))
        (c,) = await search.extend([(a, (98, 99, eos, 120))], logps=[(-1.0, -2.0, -3.0, -4.0)])
        assert (c.text, c.finish, c.logps[1:]) == ("abc", Finish.STOP_TOKEN, (-1.0, -2.0))
        (tokens,) = await search.next_tokens([b], mass=0.9)
        assert tokens.ids == (99, 100)
        return first(search, [c, b])

    result = await try_out(body, engine)
    assert result.spent.generated_tokens == 7
    assert [one.finish_reason for one in result.candidates] == ["stop", "length"]


@pytest.mark.parametrize(
    ("sampling", "ids", "text", "finish"),
    [
        (Sampling(max_tokens=3), "bcde", "abc", Finish.LENGTH),
        (Sampling(max_tokens=3), "bc", "abc", Finish.LENGTH),
        (Sampling(max_tokens=9), "bc", "abc", None),
        (Sampling(stop=("cd",)), "bcde", "ab", Finish.STOP),
        (Sampling(stop=("ab",)), "bc", "a", Finish.STOP),
        (Sampling(stop=("zz", "c")), "bcde", "ab", Finish.STOP),
        (Sampling(stop_token_ids=frozenset({99})), "bcde", "ab", Finish.STOP_TOKEN),
        (Sampling(), "b" * 50, "a" + "b" * 15, Finish.CONTEXT),
    ],
)
async def test_extend_ends_as_sampling_does(
    try_out: TryOut, sampling: Sampling, ids: str, text: str, finish: Finish | None
) -> None:
    engine = ToyEngine(LETTERS, context_tokens=20)

    async def body(search: Search) -> Outcome:
        assert search.tree.prompt_tokens == 4
        (start,) = await search.extend([(search.root, (97,))])
        (end,) = await search.extend([(start, engine.encode(ids))])
        assert (end.text, end.finish) == (text, finish)
        assert engine.decode(end.token_ids) == text
        return first(search, [end])

    await try_out(body, engine, sampling=sampling)


async def test_extend_within_the_budget(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        pairs = [(search.root, (97, 98))] * 3
        children = await search.extend(pairs)
        assert len(children) == 2
        return first(search, children)

    result = await try_out(body, ToyEngine(LETTERS), generated_tokens=5)
    assert (result.spent.generated_tokens, result.stop_reason) == (4, "budget")


async def test_characters_may_straddle_steps(try_out: TryOut) -> None:
    # every character is two bytes; steps of three bytes end inside every other one
    def table(text: str) -> dict[str, float]:
        if text.endswith("�"):
            return {"\xa9": 1.0}
        return {"\xc3": 1.0} if len(text) < 6 else {END: 1.0}

    engine = ToyEngine(table)

    async def body(search: Search) -> Outcome:
        branch, texts = search.root, []
        while branch.finish is None:
            how = search.stepwise(3)
            (branch,) = await search.expand(branch, 1, how, last=True)
            texts.append(branch.text)
        assert texts == ["é", "ééé", "éééé", "éééééé", "éééééé"]
        (again,) = await search.extend([(search.root, (0xC3,))])
        assert (again.text, again.step.is_partial) == ("", True)
        (whole,) = await search.extend([(again, (0xA9,))])
        assert whole.text == "é"
        (stopped,) = await search.expand(again, 1, Sampling(stop=("éé",)))
        assert (stopped.text, stopped.finish) == ("", Finish.STOP)
        return first(search, [branch])

    engine_run = try_out.run(body, engine)
    with pytest.raises(BrokenContract):  # the root was promised: only for the second half
        await engine_run.result()


async def test_partial_characters_extend_and_stop(try_out: TryOut) -> None:
    def table(text: str) -> dict[str, float]:
        return {"\xa9": 1.0} if text.endswith("�") else {"\xc3": 1.0}

    async def body(search: Search) -> Outcome:
        (part,) = await search.extend([(search.root, (0x61, 0xC3))])
        assert (part.text, part.step.is_partial) == ("a", True)
        (whole,) = await search.extend([(part, (0xA9,))])
        assert whole.text == "aé"
        (stopped,) = await search.expand(part, 1, Sampling(stop=("ééé",), max_tokens=20))
        assert (stopped.text, stopped.finish) == ("a", Finish.STOP)  # the first é began before
        return first(search, [stopped])

    await try_out(body, ToyEngine(table))


async def test_a_cut_inside_a_straddling_character(try_out: TryOut) -> None:
    def table(text: str) -> dict[str, float]:
        return {"\xa9": 1.0} if text.endswith("�") else {"\xc3": 1.0}

    engine = ToyEngine(table)

    async def body(search: Search) -> Outcome:
        (part,) = await search.expand(search.root, 1, search.stepwise(3), last=True)
        items = iter(range(100))

        def stick() -> None:
            if next(items) == 4:
                engine.gate = asyncio.Event()

        engine.on_item = stick
        (cut,) = await search.expand(part, 1, last=True)
        assert cut.finish is Finish.CANCELLED
        return first(search, [cut])

    pieces, result = await pieces_of(try_out.run(body, engine, wall_ms=50))
    assert "".join(piece.text for piece in pieces) == result.answers[0].content
    assert result.answers[0].content.startswith("é")


async def test_ask_is_outside_the_tree(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        one, two = await asyncio.gather(search.ask(MESSAGES), search.ask(MESSAGES, Sampling()))
        assert {one.text, two.text} <= {"abc", "abd", "xyz"}
        assert len(search.tree.branches) == 1
        short = await search.ask(MESSAGES)
        assert (len(short.text), short.finish) == (2, Finish.LENGTH)
        assert search.is_over
        with pytest.raises(BudgetExhausted, match="generated_tokens"):
            await search.ask(MESSAGES)
        raise BudgetExhausted("generated_tokens", 10, 1)

    with pytest.raises(BudgetExhausted):
        await try_out(body, ToyEngine(LETTERS), generated_tokens=10, max_tokens=4)


async def test_embed_without_hidden_states_is_tfidf(try_out: TryOut) -> None:
    table = one_of({"1 + 2\n": 0.5, "x y z\n": 0.5})

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 4, search.stepwise())
        rows = await search.embed(level)
        assert rows.shape[0] == 4
        assert rows.dtype == np.float32
        same = [[a.text == b.text for a in level] for b in level]
        assert (np.round(rows @ rows.T, 3) > 0.99).tolist() == same
        return first(search, level)

    await try_out(body, ToyEngine(table, without=[Capability.HIDDEN_STATES]))
    await try_out(body_hidden, engine := ToyEngine(table))
    assert engine.calls["embed"] == 1


async def body_hidden(search: Search) -> Outcome:
    level = await search.expand(search.root, 2, search.stepwise())
    rows = await search.embed(level)
    assert rows.sum(axis=1).tolist() == [6.0, 6.0]
    return first(search, level)


async def test_the_deadline_wakes_everything(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\nb\n": 1.0}))

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 1, search.stepwise())
        engine.gate = asyncio.Event()
        with pytest.raises(BudgetExhausted, match="time was up"):
            await search.ask(MESSAGES)
        assert search.is_over
        assert await search.expand(level[0], 1) == []
        assert np.isnan(await search.score(level)).all()
        assert search.usable(level) == []
        assert search.step_values(level[0]) == ()
        return first(search, level)

    judge = ToyJudge(len)
    result = await try_out(body, engine, judge, wall_ms=50)
    assert (result.stop_reason, result.answers[0].content) == ("deadline", "a\n")
    assert judge.batches == []


async def test_scores_are_asked_once_and_rounded(try_out: TryOut) -> None:
    judge = ToyJudge(lambda text: 1 / 3)

    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 2)
        assert await search.score([children[0]]) == [0.33333]
        assert await search.score([*children, children[0]]) == [0.33333] * 3
        assert search.step_values(children[0]) == (0.33333,)
        return first(search, children)

    result = await try_out(body, ToyEngine(LETTERS), judge)
    assert judge.batches == [1, 1]
    assert result.spent.reward_calls == 2
    assert result.spent.reward_tokens == 6


async def test_without_a_judge(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 1)
        assert search.judge is None
        assert np.isnan(search.value(children[0]))
        with pytest.raises(MissingRewardModel):
            await search.score(children)
        with pytest.raises(MissingRewardModel):
            await search.next_rewards(children)
        return first(search, children)

    await try_out(body, ToyEngine(LETTERS))


class Row:
    def __init__(self, claim: Claim) -> None:
        self.size = len(claim.token_ids)

    def at(self, ids: Sequence[int]) -> list[float]:
        return [float(self.size + one) for one in ids]


class ForkingJudge(ToyJudge):
    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        return [Row(claim) for claim in claims]


async def test_next_rewards_follow_the_branch(try_out: TryOut) -> None:
    judge = ForkingJudge(len, RewardKind.MULTIFURCATION)

    async def body(search: Search) -> Outcome:
        (one,) = await search.extend([(search.root, (97,))])
        (two,) = await search.extend([(one, (98, 99))])
        rows = await search.next_rewards([two, search.root, one])
        assert [row.at([10]) for row in rows] == [[13.0], [10.0], [11.0]]
        assert len(judge.claims) == 3
        search.prune([two], "test")
        assert len(judge.claims) == 2
        return first(search, [one])

    await try_out(body, ToyEngine(LETTERS), judge)

    async def wrong(search: Search) -> Outcome:
        await search.next_rewards([search.root])
        raise AssertionError

    with pytest.raises(MissingRewardModel, match="process"):
        await try_out(wrong, ToyEngine(LETTERS), ToyJudge(len))


async def test_delegate_shares_tree_budget_and_given(try_out: TryOut) -> None:
    judge = ToyJudge(lambda text: {"abc": 0.2, "abd": 0.5, "xyz": 0.9}[text])

    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 2)
        limits = Limits(generated_tokens=100)
        outcome = await search.delegate("best_of_n", {"width": 5}, limits, given=mine)
        assert [one.branch.path for one in outcome.candidates].count((0,)) == 1
        assert len(outcome.candidates) == 5
        assert sorted(one.id for one in search.tree.branches) == list(range(6))
        values = [one.score or 0.0 for one in outcome.candidates]
        assert values == sorted(values, reverse=True)
        none = await search.delegate("best_of_n", {"width": 2}, Limits(), given=mine)
        assert {one.branch for one in none.candidates} == set(mine)
        with pytest.raises(StrategyNotFound):
            await search.delegate("nothing", {}, Limits())
        return outcome

    result = await try_out(body, ToyEngine(LETTERS), judge)
    assert result.spent.candidates == 5
    assert result.resolved == "made"


async def test_an_inner_budget_is_an_inner_matter(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        inner = await search.delegate("self_consistency", {}, Limits(candidates=2))
        assert (len(inner.candidates), inner.stop_reason) == (2, "budget")
        with pytest.raises(BudgetExhausted, match="candidates"):
            await search.delegate("single", {}, Limits(candidates=0))
        outer = await search.expand(search.root, 1)
        return first(search, outer)

    result = await try_out(body, ToyEngine(LETTERS))
    assert result.stop_reason == "done"


async def test_delegating_everything_streams(try_out: TryOut) -> None:
    async def last(search: Search) -> Outcome:
        return await search.delegate("single", {}, Limits(), last=True)

    async def not_last(search: Search) -> Outcome:
        return await search.delegate("single", {}, Limits())

    pieces, result = await pieces_of(try_out.run(last, ToyEngine(LETTERS)))
    assert len(pieces) == 3
    pieces, again = await pieces_of(try_out.run(not_last, ToyEngine(LETTERS)))
    assert len(pieces) == 1
    assert result.answers == again.answers


async def test_inner_narrowing_spares_the_outer_branches(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"ab": 0.5, "xy": 0.5}))

    async def inner(search: Search) -> Outcome:
        children = await search.expand(search.root, 6)
        kept = [one for one in children if one.text == "xy"]
        search.may_return([*kept, *search.given])
        return first(search, kept)

    async def body(search: Search) -> Outcome:
        mine = [one for one in await search.expand(search.root, 6) if one.text == "ab"]
        search.may_return(mine)
        search.prune([search.root], "done with it")
        with pytest.raises(BrokenContract):
            await search.delegate("inner", {}, Limits())
        return first(search, mine)

    async def body_open(search: Search) -> Outcome:
        mine = [one for one in await search.expand(search.root, 6) if one.text == "ab"]
        await search.delegate("inner", {}, Limits())
        return first(search, mine)

    register(try_out.monkeypatch, inner=inner, made=body)
    pieces, _ = await pieces_of(Run(request("made"), engine=engine))
    assert [piece.text for piece in pieces] == ["ab"]
    register(try_out.monkeypatch, inner=inner, made=body_open)
    pieces, _ = await pieces_of(Run(request("made"), engine=engine))
    assert "".join(piece.text for piece in pieces) == "ab"


async def test_narrowing_streams_what_is_left(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\nb\n": 0.5, "x\ny\n": 0.5}))
    seen: list[str] = []

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 6, search.stepwise(), last=True)
        kept = [one for one in level if one.text == "x\n"]
        search.may_return(kept[:1])
        seen.append(search._bench.agreement.text)
        (end,) = await search.expand(kept[0], 1, last=True)
        seen.append(search._bench.agreement.text)
        return first(search, [end])

    pieces, result = await pieces_of(try_out.run(body, engine))
    assert seen == ["x\n", "x\ny\n"]
    assert [piece.text for piece in pieces] == ["x\n", "y", "\n"]
    assert result.answers[0].content == "x\ny\n"


async def test_breaking_a_promise_is_caught(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"ab": 0.5, "xy": 0.5}))

    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 6)
        one = next(child for child in children if child.text == "ab")
        other = next(child for child in children if child.text == "xy")
        search.may_return([one])
        return first(search, [other])

    with pytest.raises(BrokenContract, match="decided characters"):
        await try_out(body, engine)


async def test_ending_with_nothing_is_a_bug(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        return search.outcome([])

    with pytest.raises(BrokenContract, match="without a single candidate"):
        await try_out(body, ToyEngine(LETTERS))


def test_plugins_are_lazy_and_say_what_is_wrong() -> None:
    from importlib.metadata import EntryPoint

    points = {
        "good": EntryPoint("good", "json:dumps", "g"),
        "gone": EntryPoint("gone", "no_such_module_here:x", "g"),
        "empty": EntryPoint("empty", "json:no_such_name", "g"),
    }
    plugins = Plugins("g", points)
    assert plugins["good"]([1]) == "[1]"
    assert (len(plugins), plugins.where("gone")) == (3, "no_such_module_here:x")
    for name in ("gone", "empty"):
        with pytest.raises(PluginError, match=name):
            plugins[name]
    with pytest.raises(KeyError):
        plugins["nothing"]
    assert set(load("bough.strategies")) >= {"single", "best_of_n", "beam", "ets"}
    assert len(load("bough.no_such_group")) == 0
