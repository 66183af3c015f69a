"""What strategies may do with branches, tried by small strategies made here."""

import asyncio
import random
from contextlib import aclosing

import numpy as np
import pytest

from engines.base import Capability
from search.base import Outcome
from search.errors import BrokenContract, BudgetExhausted
from search.search import Search
from tests.search_harness import LETTERS, Body, TryOut, first
from tests.toy_engine import MESSAGES, ToyEngine, ToyJudge, one_of


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


async def test_ending_with_nothing_is_a_bug(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        return search.outcome([])

    with pytest.raises(BrokenContract, match="without a single candidate"):
        await try_out(body, ToyEngine(LETTERS))


async def test_equal_branches_are_embedded_once(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\n": 0.5, "b\n": 0.5}))
    asked: list[int] = []
    embed = engine.embed

    async def counting(prefixes: object, last_tokens: list[int]) -> object:
        asked.append(len(last_tokens))
        return await embed(prefixes, last_tokens)  # type: ignore[arg-type]

    engine.embed = counting  # type: ignore[assignment,method-assign]

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 12, search.stepwise())
        vectors = await search.embed(level)
        assert asked == [len({one.text for one in level})]
        for one, vector in zip(level, vectors, strict=True):
            assert vector[ord(one.text[0])] == 1
        return first(search, level)

    await try_out(body, engine)
