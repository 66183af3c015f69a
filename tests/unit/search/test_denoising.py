"""Denoising through `Search`: rows, text, seeds, budget, deadline, cancellation, restored nodes."""

import asyncio
import math
from typing import Any

import pytest

from engines.base import Capability, Finish, Sampling
from engines.errors import DeterministicKernel, UnsupportedByEngine, WrongLength
from search.base import Outcome, Ranked
from search.branch import Branch
from search.budget import Limited
from search.chains import Chain, Restored, sample_nfe
from search.errors import BudgetExhausted
from search.registry import check_fit
from search.search import Search
from tests.search_harness import TryOut, first, result_of, strategy_of
from tests.toy_denoiser import END, MASK, Letters, ToyDiffusionEngine, sticky, uniform
from tests.toy_engine import ToyEngine, ToyJudge

AB = uniform("ab")


async def whole(search: Search, chain: Chain, branch: Branch) -> Branch:
    (end,) = await search.denoise([(branch, chain.job(branch, chain.steps))])
    return end


async def test_in_pieces_as_at_once(try_out: TryOut) -> None:
    """A branch's first child goes on with its random stream; the text is that of one sample."""
    engine, ends = ToyDiffusionEngine(sticky("abc", 0.6), 6, kernel="any"), list[Branch]()

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        (begun,) = await search.denoise([(search.root, chain.job(search.root, 2))])
        state = begun.state
        assert state is not None
        assert (state.step, state.steps, state.num_revealed, begun.finish) == (2, 6, 2, None)
        assert (begun.text, begun.token_ids, state.shown.count("\u2591")) == ("", (), 4)
        one, other = [await whole(search, chain, begun) for _ in range(2)]
        ends.extend([one, other])
        return first(search, [one, other])

    result = await try_out(body, engine, seed=3)
    assert result.spent.nfe == engine.denoiser.forwards == 2 + 4 + 4
    assert result.spent.generated_tokens == 2 + 4 + 4
    assert result.spent.candidates == 3
    single = await result_of(engine, "single", seed=3)
    assert single.answers[0].content == ends[0].text != ends[1].text
    assert single.answers[0].token_ids == ends[0].token_ids
    assert single.answers[0].logps == pytest.approx(ends[0].logps)
    assert single.answers[0].finish_reason == "length"
    assert single.spent.nfe == 6


def ending(text: tuple[str | None, ...], position: int) -> dict[str, float]:
    return {"a": 1.0} if position < 2 else {END: 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("sampling", "text", "finish"),
    [
        (Sampling(), "aa", Finish.STOP_TOKEN),
        (Sampling(stop=("aab",)), "", Finish.STOP),
        (Sampling(max_tokens=2), "aa", Finish.LENGTH),
    ],
)
async def test_a_text_ends_at_its_eos_and_at_stops(
    try_out: TryOut, sampling: Sampling, text: str, finish: Finish
) -> None:
    seen = list[Branch]()

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        seen.extend([await whole(search, chain, search.root) for _ in range(8)])
        return first(search, seen)

    await try_out(body, ToyDiffusionEngine(ending, 4, steps=2), sampling=sampling)
    assert (text, finish) in {(one.text, one.finish) for one in seen}
    assert all(len(one.logps) == len(one.token_ids) for one in seen)
    if finish is Finish.STOP:
        assert not any("aab" in one.text for one in seen)


async def test_prompts_are_never_altered(try_out: TryOut) -> None:
    engine = ToyDiffusionEngine(AB, 5)

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        prompt = chain.start[: chain.prompt_tokens]
        ends = []
        for stop in range(1, 6):
            (one,) = await search.denoise([(search.root, chain.job(search.root, stop))])
            assert one.state is not None
            assert one.state.row[: chain.prompt_tokens] == prompt
            ends.append(one)
        return first(search, ends)

    await try_out(body, engine)
    assert all(
        job.frozen_mask[:-5] == (True,) * (len(job.tokens) - 5) for job in engine.denoiser.jobs
    )


@pytest.mark.parametrize(
    ("limits", "landed", "cut"),
    [
        ({"nfe": 9}, 2, "nfe"),
        ({"nfe": 8}, 2, "nfe"),
        ({"nfe": 3}, 0, "nfe"),
        ({"generated_tokens": 11}, 2, "generated_tokens"),
        ({"candidates": 1}, 1, "candidates"),
    ],
)
async def test_what_cannot_be_paid_is_not_run(
    try_out: TryOut, limits: dict[str, Any], landed: int, cut: Limited
) -> None:
    engine = ToyDiffusionEngine(AB, 4)

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        ends = await search.denoise([(search.root, chain.job(search.root, 4))] * 3)
        assert len(ends) == landed
        return first(search, ends)

    run = try_out.run(body, engine, **limits)
    if not landed:
        with pytest.raises(BudgetExhausted, match=cut):
            await run.result()
    else:
        assert (await run.result()).stop_reason == "budget"
    assert run.budget.spent.nfe == engine.denoiser.forwards == 4 * landed
    assert run.budget.left(cut) == limits[cut] - getattr(run.budget.spent, cut)


async def test_at_the_deadline_nothing_comes_back_and_the_bound_is_spent(try_out: TryOut) -> None:
    engine = ToyDiffusionEngine(AB, 4)
    engine.denoiser.gate = asyncio.Event()

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        assert await search.denoise([(search.root, chain.job(search.root, 3))]) == []
        assert search.is_over
        assert await search.denoise([(search.root, chain.job(search.root, 3))]) == []
        return search.outcome([])

    run = try_out.run(body, engine, wall_ms=5)
    with pytest.raises(BudgetExhausted, match="time"):
        await run.result()
    assert run.budget.spent.nfe == 3
    assert len(engine.denoiser.batches) == 1


async def test_cancelling_leaves_nothing_held(try_out: TryOut) -> None:
    engine = ToyDiffusionEngine(AB, 4)
    engine.denoiser.gate = asyncio.Event()

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        return first(search, [await whole(search, chain, search.root)])

    run = try_out.run(body, engine, nfe=10)
    task = asyncio.create_task(run.result())
    await engine.denoiser.called.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert run.budget.left("nfe") == 10 - run.budget.spent.nfe == 6
    assert not engine.claims


async def test_events_show_the_masks(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        chain = search.chain()
        (begun,) = await search.denoise([(search.root, chain.job(search.root, 1))])
        return first(search, [await whole(search, chain, begun)])

    run = try_out.run(body, ToyDiffusionEngine(uniform("x"), 3))
    await run.result()
    _, begun, end = run.tree.snapshot()["nodes"]
    assert (begun["shown"], begun["step"], begun["steps"]) == ("x\u2591\u2591", 1, 3)
    assert (begun["text"], begun["finish"], end["shown"], end["text"]) == ("", None, "xxx", "xxx")
    assert "restored" not in begun


async def test_restored_nodes_cost_nothing_and_are_continued(try_out: TryOut) -> None:
    engine, judge = ToyDiffusionEngine(AB, 3), ToyJudge(lambda text: 0.25)
    a, b = ord("a"), ord("b")
    nodes = [
        Restored(None, (a, MASK, MASK), 1),
        Restored(0, (a, b, b), 3, 0.75),
        Restored(None, (b, b, a), 3, 0.5),
    ]

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        begun, one, other = await search.restore(nodes, chain, nfe=6, rollouts=2)
        assert [search.value(branch) for branch in (begun, one, other)][1:] == [0.75, 0.5]
        assert (one.text, one.finish, one.parent) == ("abb", Finish.LENGTH, begun)
        assert search.budget.spent.nfe == 0
        new = await whole(search, chain, begun)
        assert new.path == (0, 1)
        assert await search.score([new, one]) == [0.25, 0.75]
        return search.outcome([Ranked(one, 0.75), Ranked(new, 0.25)])

    result = await try_out(body, engine, judge)
    assert result.spent.nfe == engine.denoiser.forwards == 2
    assert (result.spent.reward_calls, result.spent.generated_tokens) == (1, 2)
    assert (result.tree.reused_nodes, result.tree.reused_nfe) == (3, 6)
    assert result.answers[0].content == "abb"


async def test_seeds_after_a_restoration_are_new_ones(try_out: TryOut) -> None:
    """The same seed that made a tree must not draw it again when it goes on."""
    engine = ToyDiffusionEngine(uniform("abcdefgh"), 6)
    nodes = [Restored(None, (ord("a"),) * 6, 6, 0.5)]
    texts = []

    for stored, rollouts in (([], 0), (nodes, 1), (nodes, 2)):

        async def body(
            search: Search, stored: list[Restored] = stored, rollouts: int = rollouts
        ) -> Outcome:
            chain = search.chain()
            if stored:
                await search.restore(stored, chain, nfe=0, rollouts=rollouts)
            ends = [await whole(search, chain, search.root) for _ in range(2)]
            return first(search, ends)

        result = await try_out(body, engine, ToyJudge(lambda text: 0.5), seed=11)
        texts += [one.content for one in result.candidates]
    assert len(set(texts)) == 6


async def test_others_work_while_nodes_are_restored(try_out: TryOut) -> None:
    nodes = [Restored(None, (ord("a"),) * 6, 6, 0.5)] * 200
    turns = list[int]()

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def body(search: Search) -> Outcome:
        beside = asyncio.create_task(others())
        branches = await search.restore(nodes, search.chain(), nfe=0, rollouts=200)
        beside.cancel()
        return first(search, branches)

    await try_out(body, ToyDiffusionEngine(AB, 6), ToyJudge(lambda text: 0.5))
    assert len(turns) >= 200 // 32


async def test_tokens_of_the_tree_are_those_revealed(try_out: TryOut) -> None:
    engine = ToyDiffusionEngine(AB, 4)

    async def body(search: Search) -> Outcome:
        chain = search.chain()
        (begun,) = await search.denoise([(search.root, chain.job(search.root, 3))])
        return first(search, [await whole(search, chain, begun) for _ in range(2)])

    result = await try_out(body, engine)
    prompt = result.prompt_tokens
    assert (result.tree.unique_tokens, result.tree.logical_tokens) == (prompt + 5, 2 * (prompt + 4))
    assert result.answers[0].num_tokens == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_chain_without_chance_is_refused(try_out: TryOut, temperature: float) -> None:
    async def body(search: Search) -> Outcome:
        if temperature:
            with pytest.raises(WrongLength, match="blocks of 3"):
                search.chain(block_length=3)
            assert search.chain(steps=2, block_length=None).steps == 2
        else:
            with pytest.raises(DeterministicKernel, match="temperature above 0"):
                search.chain()
        chain = search.chain(name="any")
        return first(search, [await whole(search, chain, search.root)])

    await try_out(body, ToyDiffusionEngine(AB, 4), sampling=Sampling(temperature=temperature))


async def test_an_engine_that_does_not_denoise(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        with pytest.raises(UnsupportedByEngine, match="denoise"):
            search.chain()
        return first(search, await search.expand(search.root, 1))

    await try_out(body, ToyEngine())
    needs = strategy_of("needs", body, frozenset({Capability.DENOISE}))
    with pytest.raises(UnsupportedByEngine, match="denoise"):
        check_fit(needs(needs.Params()), ToyEngine().info, None)


def test_the_price_of_a_sample() -> None:
    assert sample_nfe(ToyDiffusionEngine(AB, 6), 5, Sampling()) == 6
    assert sample_nfe(ToyDiffusionEngine(AB, 6, steps=9), 5, Sampling(max_tokens=4)) == 4
    assert sample_nfe(ToyEngine(), 5, Sampling()) == 0


async def test_samples_are_paid_before_they_are_drawn() -> None:
    """best_of_n on a denoiser: a budget of 11 evaluations pays for two texts of 4."""
    engine, judge = ToyDiffusionEngine(AB, 4), ToyJudge(lambda text: text.count("a") / 4)
    result = await result_of(engine, "best_of_n", {"width": 8}, judge=judge, nfe=11)
    assert result.spent.nfe == engine.denoiser.forwards == 8
    assert (result.spent.candidates, result.stop_reason) == (2, "budget")
    with pytest.raises(BudgetExhausted, match="nfe is used up: limit 3, 4 more needed"):
        await result_of(engine, "best_of_n", {"width": 8}, judge=judge, nfe=3)


def certain(table: Letters) -> float:
    return math.fsum(table((None, None), 0).values())


def test_the_toy_tables_are_distributions() -> None:
    assert certain(AB) == pytest.approx(1)
    assert certain(sticky("abc", 0.6)) == pytest.approx(1)
