"""Strategies that let others search."""

import pytest

from search.base import Outcome
from search.budget import Limits
from search.errors import BrokenContract, BudgetExhausted, StrategyNotFound
from search.run import Run
from search.search import Search
from tests.search_harness import LETTERS, TryOut, first, pieces_of, register, request
from tests.toy_engine import ToyEngine, ToyJudge, one_of


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


@pytest.mark.parametrize(
    "name",
    [
        "best_of_n",
        "self_consistency",
        "adaptive_consistency",
        "gen_select",
        "beam",
        "dvts",
        "rebase",
        "ets",
    ],
)
async def test_given_branches_are_candidates_already_paid_for(try_out: TryOut, name: str) -> None:
    judge = ToyJudge(lambda text: {"abc": 0.2, "abd": 0.9, "xyz": 0.5}[text])

    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 3)
        before = search.budget.spent.candidates
        outcome = await search.delegate(name, {"width": 5}, Limits(), given=mine)
        assert search.budget.spent.candidates - before == 2
        assert set(mine) <= {one.branch for one in outcome.candidates}
        assert len(outcome.candidates) == 5
        enough = await search.delegate(name, {"width": 2}, Limits(), given=mine)
        assert search.budget.spent.candidates - before == 2
        assert {one.branch for one in enough.candidates} == set(mine)
        return outcome

    await try_out(body, ToyEngine(LETTERS), judge)


async def test_a_given_answer_is_what_single_would_draw(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 1)
        outcome = await search.delegate("single", {}, Limits(), given=mine)
        assert [one.branch for one in outcome.candidates] == mine
        return outcome

    assert (await try_out(body, ToyEngine(LETTERS))).spent.candidates == 1
