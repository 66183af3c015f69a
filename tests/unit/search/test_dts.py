"""Trees of denoising rollouts through `Run`: the plain algorithm, budgets, anytime, bad input."""

import asyncio
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from engines.base import Sampling
from engines.diffusion.base import DenoiseJob, Kernel, frozen_prompt
from engines.errors import DeterministicKernel, UnknownKernel, UnsupportedByEngine, WrongLength
from search.budget import Limits
from search.diffusion_tree import branch_levels
from search.errors import BudgetExhausted, InvalidParameter, MissingRewardModel, UnknownParameter
from search.rollouts import Rewards
from search.run import Run
from search.steps import seed_of
from tests.search_harness import register, request, result_of
from tests.toy_denoiser import ToyDenoiser, ToyDiffusionEngine, sticky
from tests.toy_engine import ToyEngine, ToyJudge

LETTERS = "abcd"
LENGTH = 8


def turns(text: str) -> float:
    """Share of neighbours that differ, and a little for every b."""
    return sum(one != other for one, other in pairwise(text)) / 7 + 0.013 * text.count("b")


def engine_of(length: int = LENGTH, kernel: str = "any") -> ToyDiffusionEngine:
    return ToyDiffusionEngine(sticky(LETTERS, 0.7), length, kernel=kernel)


class PlainTree:
    """DTS* as the paper has it: one rollout after the other, dictionaries, nothing in flight."""

    def __init__(self, prompt: tuple[int, ...], seed: int, levels: tuple[int, ...]) -> None:
        self.denoiser = ToyDenoiser(sticky(LETTERS, 0.7), LENGTH)
        self.prompt, self.seed, self.levels = prompt, seed, levels
        self.kernel = Kernel("any", LENGTH)
        self.rewards: list[float] = []
        self.root = self.node(self.denoiser.start(prompt, LENGTH), (), None)

    def node(self, row: tuple[int, ...], path: tuple[int, ...], seed: int | None) -> dict[str, Any]:
        return {"row": row, "path": path, "seed": seed, "v": 0.0, "N": 1, "children": []}

    async def iterate(self, capacity: float, alpha: float, c_uct: float) -> None:
        x, way = self.root, [self.root]
        while len(x["path"]) < len(self.levels):
            if len(x["children"]) < capacity * x["N"] ** alpha:
                break
            above, bonus = x["N"], c_uct * self.spread()
            x = max(
                x["children"],
                key=lambda c: c["v"] + bonus * math.sqrt(math.log(above) / c["N"]),
            )
            way.append(x)
        if len(x["path"]) == len(self.levels):
            x["N"] += 1
        else:
            while len(x["path"]) < len(self.levels):
                x = await self.child(x)
                way.append(x)
            x["v"] = self.reward(x)
            self.rewards.append(x["v"])
        for y in reversed(way[:-1]):
            y["v"] = max(child["v"] for child in y["children"])
            y["N"] += 1

    def spread(self) -> float:
        rewards = Rewards()
        for one in self.rewards:
            rewards.add(one)
        return rewards.spread

    def reward(self, x: dict[str, Any]) -> float:
        return round(turns("".join(map(chr, x["row"][len(self.prompt) :]))), 5)

    async def child(self, x: dict[str, Any]) -> dict[str, Any]:
        number, level = len(x["children"]), len(x["path"])
        path = (*x["path"], number)
        seed = x["seed"] if x["seed"] is not None and number == 0 else seed_of(self.seed, path)
        below = self.levels[level + 1] if level + 1 < len(self.levels) else 0
        job = DenoiseJob(
            x["row"],
            frozen_prompt(len(self.prompt), LENGTH),
            LENGTH - self.levels[level],
            LENGTH - below,
            seed,
            1.0,
            self.kernel,
        )
        (done,) = await self.denoiser.denoise([job])
        child = self.node(done.tokens, path, seed)
        x["children"].append(child)
        return child

    def texts(self) -> list[tuple[float, str]]:
        stack, found = [self.root], []
        while stack:
            x = stack.pop()
            stack += x["children"]
            if len(x["path"]) == len(self.levels):
                found.append((x["v"], "".join(map(chr, x["row"][len(self.prompt) :]))))
        return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("capacity", "alpha", "c_uct"), [(1.0, 0.5, 0.3), (2.0, 0.4, 1.0)])
async def test_one_worker_is_the_sequential_algorithm(
    seed: int, capacity: float, alpha: float, c_uct: float
) -> None:
    engine, judge = engine_of(), ToyJudge(turns)
    params: dict[str, Any] = {"width": 1, "iterations": 60, "merge": False, "reuse": False}
    params |= {"capacity": capacity, "alpha": alpha, "c_uct": c_uct}
    result = await result_of(engine, "dts_star", params, judge=judge, seed=seed)
    prompt = engine.denoiser.jobs[0].tokens[:-LENGTH]
    plain = PlainTree(prompt, seed, branch_levels(LENGTH))
    for _ in range(60):
        await plain.iterate(capacity, alpha, c_uct)
    assert sorted((one.score, one.content) for one in result.candidates[1:]) == sorted(
        plain.texts()
    )
    assert result.score == max(value for value, _ in plain.texts())
    assert result.spent.nfe == plain.denoiser.forwards == engine.denoiser.forwards
    assert [job.seed for job in engine.denoiser.jobs] == [job.seed for job in plain.denoiser.jobs]


@pytest.mark.parametrize("width", [1, 3, 8])
async def test_without_widening_it_is_best_of_n(width: int) -> None:
    """C = inf: every rollout from the root, with the very draws of best_of_n."""
    judge = ToyJudge(turns)
    params = {"capacity": "inf", "samples": 7, "width": width}
    tree = await result_of(engine_of(), "dts_star", params, judge=judge, seed=5)
    plain = await result_of(engine_of(), "best_of_n", {"width": 7}, judge=judge, seed=5)
    assert tree.answers[0].content == plain.answers[0].content
    assert tree.score == plain.score
    assert tree.spent.nfe == plain.spent.nfe == 7 * LENGTH
    assert {one.content for one in tree.candidates} == {one.content for one in plain.candidates}


@pytest.mark.parametrize("name", ["dts", "dts_star", "fk_steering"])
@pytest.mark.parametrize("budget", [8, 9, 15, 16, 23, 40, 77])
async def test_budgets_hold_to_the_evaluation(name: str, budget: int) -> None:
    engine = engine_of()
    params = {"width": 3} | ({} if name == "fk_steering" else {"reuse": False})
    if name == "fk_steering" and budget < 8 + 5:
        with pytest.raises(BudgetExhausted, match="nfe"):
            await result_of(engine, name, params, judge=ToyJudge(turns), nfe=budget)
        return
    run = Run(request(name, params, nfe=budget), engine=engine, judge=ToyJudge(turns))
    result = await run.result()
    assert result.spent.nfe == engine.denoiser.forwards <= budget
    assert result.answers[0].content
    if name != "fk_steering":
        assert budget - result.spent.nfe < LENGTH
        assert result.stop_reason == "budget"


@pytest.mark.parametrize("name", ["dts", "dts_star", "fk_steering"])
async def test_a_budget_below_one_text_is_refused_with_the_numbers(name: str) -> None:
    with pytest.raises(BudgetExhausted, match=r"nfe is used up: limit 7, (8|13) more needed"):
        await result_of(engine_of(), name, judge=ToyJudge(turns), nfe=7)


async def test_the_best_text_is_the_answer_and_more_budget_gives_no_worse() -> None:
    scores = []
    for samples in (1, 2, 4, 8, 16):
        params = {"samples": samples, "width": 1}
        result = await result_of(engine_of(), "dts_star", params, judge=ToyJudge(turns), seed=2)
        known = [one.score for one in result.candidates if one.score is not None]
        assert result.score == max(known)
        scores.append(result.score)
    assert scores[-1] > scores[0]


async def test_a_round_is_one_batch_a_level_and_one_judgement() -> None:
    engine, judge = engine_of(), ToyJudge(turns)
    params = {"width": 4, "samples": 4, "capacity": "inf"}
    await result_of(engine, "dts_star", params, judge=judge, seed=1)
    levels = branch_levels(LENGTH)
    assert engine.denoiser.batches == [4] * len(levels)
    assert len(judge.batches) == 1


async def test_equal_texts_are_judged_once() -> None:
    engine, judge = ToyDiffusionEngine(sticky("ab", 0.99), 3), ToyJudge(turns)
    params = {"width": 2, "samples": 12}
    result = await result_of(engine, "dts_star", params, judge=judge, seed=1)
    texts = [one.text for one in judge.seen]
    assert len(texts) == len(set(texts)) == result.spent.reward_calls
    assert result.spent.candidates > len(texts)


async def test_the_prompt_is_never_altered() -> None:
    engine = engine_of()
    await result_of(engine, "dts", {"samples": 6}, judge=ToyJudge(turns), seed=1)
    prompts = {job.tokens[:-LENGTH] for job in engine.denoiser.jobs}
    assert len(prompts) == 1
    assert all(job.frozen_mask.count(False) == LENGTH for job in engine.denoiser.jobs)


@pytest.mark.parametrize("name", ["dts", "dts_star", "fk_steering"])
async def test_equal_seeds_are_identical(name: str) -> None:
    results = []
    for seed in (3, 3, 4):
        made = request(name, {"width": 3}, seed=seed, sampling=Sampling(seed=seed))
        results.append(await Run(made, engine=engine_of(), judge=ToyJudge(turns)).result())
    texts = [[one.content for one in result.candidates] for result in results]
    assert texts[0] == texts[1] != texts[2]
    assert results[0].spent.nfe == results[1].spent.nfe


@pytest.mark.parametrize("name", ["dts", "dts_star"])
async def test_a_failed_reward_drops_its_rollout(name: str) -> None:
    def odd(text: str) -> float:
        return math.nan if text.startswith("a") else turns(text)

    judge = ToyJudge(odd)
    result = await result_of(engine_of(), name, {"samples": 8}, judge=judge, seed=3)
    assert result.spent.dropped > 0
    assert not any(one.content.startswith("a") for one in result.candidates)
    blind = ToyJudge(lambda text: math.nan)
    nothing = await result_of(engine_of(), name, judge=blind, nfe=20)
    assert (nothing.score, bool(nothing.answers[0].content)) == (None, True)
    assert nothing.spent.dropped == nothing.spent.reward_calls == 2


@pytest.mark.parametrize(("name", "lambda_"), [("dts_star", None), ("dts_star", 2.0), ("dts", 2.0)])
async def test_it_stops_at_a_reward_that_is_enough_and_gives_it(
    name: str, lambda_: float | None
) -> None:
    for seed in range(8):
        knobs = {} if lambda_ is None else {"lambda": lambda_}
        params = {"width": 1, "samples": 64, "target": 0.4, **knobs}
        result = await result_of(engine_of(), name, params, judge=ToyJudge(turns), seed=seed)
        assert result.score is not None
        assert result.score >= 0.4
        assert (result.stop_reason, result.spent.nfe < 64 * LENGTH) == ("done", True)


class Ticking:
    """A clock that goes on whenever the denoiser is called."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("name", ["dts", "dts_star", "fk_steering"])
async def test_the_deadline_leaves_the_best_so_far(name: str) -> None:
    engine, clock = engine_of(), Ticking()
    denoise = engine.denoiser.denoise

    async def slow(jobs: Any) -> Any:
        clock.now += 0.1
        return await denoise(jobs)

    engine.denoiser.denoise = slow  # type: ignore[method-assign]
    made = request(name, {"width": 2}, wall_ms=950)
    run = Run(made, engine=engine, judge=ToyJudge(turns), clock=clock)
    result = await run.result()
    assert result.stop_reason == "deadline"
    assert result.answers[0].content
    assert len(engine.denoiser.batches) == 10
    assert not engine.claims


@pytest.mark.parametrize(
    ("params", "sampling", "error", "match"),
    [
        ({"branch_levels": [9]}, Sampling(), InvalidParameter, "from 1 to 8"),
        ({"branch_levels": [0, 3]}, Sampling(), InvalidParameter, "from 1 to 8"),
        ({"kernel": "mdlm"}, Sampling(), UnknownKernel, "it has left, any"),
        ({"block_length": 3}, Sampling(), WrongLength, "blocks of 3"),
        ({"kernel": "left"}, Sampling(temperature=0), DeterministicKernel, "temperature above 0"),
        ({"lambda": 0}, Sampling(), InvalidParameter, "greater than 0"),
        ({"lambda": "infinite"}, Sampling(), InvalidParameter, "number"),
        ({"capacity": -1.0}, Sampling(), InvalidParameter, "greater than 0"),
        ({"alpha": 1.0}, Sampling(), InvalidParameter, "less than 1"),
        ({"width": 0}, Sampling(), InvalidParameter, "greater than or equal to 1"),
        ({"lamda": 1}, Sampling(), UnknownParameter, "did you mean 'lambda'"),
    ],
)
@pytest.mark.parametrize("name", ["dts", "dts_star"])
def test_bad_input_is_refused_before_any_work(
    name: str, params: dict[str, Any], sampling: Sampling, error: type[Exception], match: str
) -> None:
    engine = engine_of()
    with pytest.raises(error, match=match):
        Run(request(name, params, sampling=sampling), engine=engine, judge=ToyJudge(turns))
    assert not engine.denoiser.jobs


@pytest.mark.parametrize("name", ["dts", "dts_star", "fk_steering"])
def test_who_cannot_carry_it(name: str) -> None:
    with pytest.raises(UnsupportedByEngine, match="denoise"):
        Run(request(name), engine=ToyEngine(), judge=ToyJudge(turns))
    with pytest.raises(MissingRewardModel):
        Run(request(name), engine=engine_of())
    cold = Sampling(temperature=0)
    made = request(name, {"kernel": "left"}, sampling=cold)
    with pytest.raises(DeterministicKernel):
        Run(made, engine=engine_of(), judge=ToyJudge(turns))
    Run(request(name, {"kernel": "any"}, sampling=cold), engine=engine_of(), judge=ToyJudge(turns))


async def test_answers_given_by_an_outer_strategy_compete() -> None:
    for reward, expected in ((5.0, True), (-5.0, False)):
        result = await chained(reward)
        assert (result.score == reward) is expected


async def chained(reward: float) -> Any:
    """An outer strategy that has one answer already, of this reward."""

    def value(text: str) -> float:
        return reward if judge.seen == [] or text == first else turns(text)

    first = ""
    judge = ToyJudge(value)

    async def body(search: Any) -> Any:
        nonlocal first
        (given,) = await search.expand(search.root, 1)
        first = given.text
        await search.score([given])
        return await search.delegate("dts_star", {"samples": 4}, Limits(), given=[given])

    with pytest.MonkeyPatch.context() as patch:
        register(patch, outer=body)
        return await Run(request("outer"), engine=engine_of(), judge=judge).result()


@pytest.mark.parametrize("choose", ["sample", "best"])
async def test_draws_come_first_and_are_of_the_tree(choose: str) -> None:
    params = {"samples": 16, "choose": choose, "lambda": 4.0}
    made = request("dts", params, answers=3, seed=6)
    result = await Run(made, engine=engine_of(), judge=ToyJudge(turns)).result()
    assert len(result.answers) == 3
    scores = [one.score for one in result.candidates if one.score is not None]
    assert (scores[0] == max(scores)) is (choose == "best")


async def test_concurrent_runs_do_not_change_each_other() -> None:
    engine = engine_of()

    async def ask(seed: int) -> Any:
        made = request("dts_star", {"samples": 6}, seed=seed, sampling=Sampling(seed=seed))
        return await Run(made, engine=engine, judge=ToyJudge(turns)).result()

    alone = [await ask(seed) for seed in range(4)]
    crowded = await asyncio.gather(*map(ask, range(4)))
    assert [one.answers for one in alone] == [one.answers for one in crowded]


async def test_rounds_of_known_texts_let_others_work() -> None:
    """With next to no room for children every selection ends in the one text there is."""
    turns_of_others = 0

    async def others() -> None:
        nonlocal turns_of_others
        while True:
            turns_of_others += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    params = {"capacity": 1e-6, "iterations": 400, "width": 4}
    await result_of(engine_of(), "dts_star", params, judge=ToyJudge(turns))
    beside.cancel()
    assert turns_of_others >= 100


def value_by(table: dict[str, float]) -> Callable[[str], float]:
    return lambda text: table.get(text, 0.0)


async def test_the_exact_toy_through_the_product() -> None:
    """E4's target 4/7: of 24 seeds, as many draws of aa as 4 standard deviations allow."""
    hits = 0
    for seed in range(24):
        engine = ToyDiffusionEngine(sticky("ab", 0.5), 2)
        params = {"lambda": 1.0, "iterations": 80, "capacity": 1.0, "alpha": 0.5, "width": 2}
        judge = ToyJudge(value_by({"aa": math.log(4)}))
        result = await result_of(engine, "dts", params, judge=judge, seed=seed)
        hits += result.answers[0].content == "aa"
    assert abs(hits - 24 * 4 / 7) < 4 * math.sqrt(24 * 12 / 49)
