"""`annealed`, and schedules that a pilot of the run sizes."""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from scipy import stats

from engines.base import Capability, Continuation, Sampling
from engines.errors import UnsupportedByEngine
from reward_models.base import RewardKind
from search.budget import Limits
from search.errors import InvalidParameter
from search.registry import make_strategy
from search.run import Result, Run
from search.schedules import Annealed, Unsized
from search.search import Search
from tests.search_harness import LETTERS, TryOut, request, result_of
from tests.toy_engine import END, MESSAGES, ToyEngine, ToyJudge, one_of

FALSE_ALARM = 1e-4  # of each statistical test, over seeds; theirs are fixed
ALIKE = one_of({"so 4": 0.5, "it is 4": 0.5})


@dataclass
class Watched(ToyEngine):
    """Remembers how each call of `sample` was to draw."""

    table: Any = LETTERS
    hows: list[tuple[Sampling, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.table)

    def sample(self, prefix: Any, how: Sampling, *, n: int = 1, seeds: Any = None) -> Any:
        self.hows.append((how, n))
        return super().sample(prefix, how, n=n, seeds=seeds)

    def __hash__(self) -> int:
        return id(self)

    @property
    def heats(self) -> list[tuple[Annealed | None, int]]:
        return [(how.schedule, n) for how, n in self.hows]  # type: ignore[misc]


async def test_a_pilot_sizes_the_rest_and_is_among_the_candidates() -> None:
    engine = Watched()
    result = await result_of(engine, "annealed", {"width": 8})
    # Every answer of LETTERS has three letters.
    sized = Unsized().sized([3])
    assert engine.heats == [(None, 4), (sized, 4)]
    assert result.resolved == f"annealed: decay_tokens {sized.decay_tokens}"
    assert len(result.candidates) == result.spent.candidates == 8
    assert sized.floor_at == pytest.approx(3, abs=0.08)


async def test_a_decay_that_is_given_needs_no_pilot() -> None:
    engine = Watched()
    how = Sampling(max_tokens=40, temperature=0.7)
    params = {"width": 5, "decay_tokens": 311.6, "tau_min": 0.3, "warmup_tokens": 4}
    result = await result_of(engine, "annealed", params, sampling=how)
    assert engine.heats == [(Annealed(1.2, 0.3, 311.6, 4, 0.7), 5)]
    assert result.resolved == "annealed"


@pytest.mark.parametrize(("width", "pilots"), [(1, 1), (2, 1), (3, 1), (7, 3), (16, 4)])
async def test_at_most_half_of_the_width_is_pilot(width: int, pilots: int) -> None:
    engine = Watched()
    result = await result_of(engine, "annealed", {"width": width})
    assert [n for _, n in engine.hows] == [n for n in (pilots, width - pilots) if n]
    assert result.spent.candidates == width


async def test_greedy_has_nothing_to_anneal() -> None:
    engine = Watched()
    how = Sampling(max_tokens=40, temperature=0.0)
    result = await result_of(engine, "annealed", {"width": 3, "tau_max": 1.5}, sampling=how)
    assert engine.heats == [(None, 3)]
    assert result.ignored == ("bough.params.tau_max",)


async def test_the_requests_own_schedule_comes_first() -> None:
    engine = Watched()
    own = Annealed(1.1, 0.5, 20.0)
    how = Sampling(max_tokens=40, schedule=own)
    params = {"width": 3, "decay_tokens": 9.0, "choose": "majority"}
    result = await result_of(engine, "annealed", params, sampling=how)
    assert engine.heats == [(own, 3)]
    assert result.ignored == ("bough.params.decay_tokens",)


async def test_given_answers_are_looked_at_and_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(search: Search) -> Any:
        given = await search.expand(search.root, 2)
        inner = await search.delegate("annealed", {"width": 6}, Limits(), given=given, last=True)
        assert {one.branch for one in inner.candidates} >= set(given)
        return inner

    engine = Watched()
    result = await TryOut(monkeypatch)(body, engine)
    assert [n for _, n in engine.hows] == [2, 1, 3]
    assert len(result.candidates) == 6


async def test_votes_and_values() -> None:
    values = {"so 4": 0.9, "it is 4": 0.2, "5": 0.99}
    table = one_of({"so 4": 0.4, "it is 4": 0.4, "5": 0.2})

    async def chosen(choose: str, seed: int) -> Result:
        judge = ToyJudge(lambda text: values[text], RewardKind.OUTCOME)
        params = {"width": 8, "choose": choose, "decay_tokens": 500.0}
        return await result_of(ToyEngine(table), "annealed", params, judge=judge, seed=seed)

    for seed in range(5):
        drawn = Counter(one.content for one in (await chosen("majority", seed)).candidates)
        voted = (await chosen("majority", seed)).answers[0]
        fours = drawn["so 4"] + drawn["it is 4"]
        assert voted.score == max(fours, drawn["5"]) / 8
        best = (await chosen("best", seed)).answers[0]
        assert best.score == max(values[text] for text in drawn)
        weighted = (await chosen("weighted", seed)).answers[0]
        worth = {text: count * values[text] for text, count in drawn.items()}
        assert (weighted.content == "5") == (worth.get("5", 0) > worth["so 4"] + worth["it is 4"])


def test_a_floor_above_the_start_is_refused() -> None:
    for params in ({"tau_min": 1.3}, {"tau_max": 0.05}):
        with pytest.raises(InvalidParameter) as refused:
            make_strategy("annealed", params)
        assert refused.value.param == "bough.params.tau_min"


@pytest.mark.parametrize("unsized", [None, Unsized()], ids=["given", "unsized"])
def test_an_engine_without_schedules_refuses_before_any_work(unsized: Unsized | None) -> None:
    engine = ToyEngine(without=[Capability.SCHEDULE])
    how = Sampling(max_tokens=9, schedule=Annealed() if unsized is None else None)
    asked = replace(request("single", sampling=how), unsized=unsized)
    with pytest.raises(UnsupportedByEngine) as option:
        Run(asked, engine=engine)
    assert option.value.capability == "schedule"
    assert not isinstance(option.value.capability, Capability)
    with pytest.raises(UnsupportedByEngine) as strategy:
        Run(request("annealed"), engine=engine)
    assert strategy.value.capability is Capability.SCHEDULE
    assert not engine.calls


def run_of(engine: ToyEngine, unsized: Unsized, strategy: str = "single", **more: Any) -> Run:
    return Run(replace(request(strategy, **more), unsized=unsized), engine=engine)


async def test_any_strategy_takes_a_schedule_that_a_pilot_sizes() -> None:
    engine = Watched()
    run = run_of(engine, Unsized(tau_min=0.3, pilot=3))
    result = await run.result()
    sized = Unsized(tau_min=0.3).sized([3])
    assert engine.heats == [(None, 3), (sized, 1)]
    assert result.resolved == f"single: decay_tokens {sized.decay_tokens}"
    # The pilot is paid for, three letters and an end each, and is nobody's candidate.
    assert result.spent.generated_tokens == 4 * 4
    assert (result.spent.candidates, len(result.candidates)) == (1, 1)
    assert not engine.claims


async def test_what_the_reply_reports_gives_the_same_answer_again() -> None:
    table = one_of({"abcdefghij" * k: 1 / 3 for k in (1, 2, 3)})
    for seed in range(5):
        sized_run = run_of(ToyEngine(table), Unsized(), "self_consistency", seed=seed)
        sized = await sized_run.result()
        decay = float(sized.resolved.rpartition(" ")[2])
        how = Sampling(max_tokens=40, schedule=Annealed(decay_tokens=decay))
        again = await result_of(ToyEngine(table), "self_consistency", sampling=how, seed=seed)
        assert again.answers == sized.answers


@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 9, 16, 40])
async def test_a_pilot_leaves_half_of_the_budget(tokens: int) -> None:
    endless = ToyEngine(lambda text: {"a": 1.0})
    run = run_of(endless, Unsized(pilot=4), generated_tokens=tokens)
    result = await run.result()
    assert result.spent.generated_tokens <= tokens
    assert len(result.answers[0].token_ids) >= tokens / 2
    assert not endless.claims


async def test_a_pilot_takes_at_most_half_of_the_time() -> None:
    now = [0.0]
    engine = ToyEngine(lambda text: {"a": 1.0})

    async def measured() -> Result:
        asked = replace(request("single", wall_ms=200, max_tokens=300), unsized=Unsized(pilot=2))
        return await Run(asked, engine=engine, clock=lambda: now[0]).result()

    # The clock stands still, so only the pilot's own timer can end it: its engine hangs.
    hanging = engine.sample
    held: list[int] = []

    def sample(prefix: Any, how: Sampling, *, n: int = 1, seeds: Any = None) -> Any:
        if held:
            return hanging(prefix, how, n=n, seeds=seeds)
        held.append(n)
        return _stuck(hanging(prefix, how, n=n, seeds=seeds))

    engine.sample = sample  # type: ignore[method-assign]
    result = await measured()
    assert held == [2]
    assert result.answers[0].content
    assert not engine.claims


async def _stuck(stream: Any) -> Any:
    try:
        for _ in range(6):
            yield await anext(stream)
        await asyncio.Event().wait()
    finally:
        await stream.aclose()


async def test_cancelling_a_pilot_frees_everything() -> None:
    for turns in range(1, 60):
        engine = ToyEngine(lambda text: {"a": 1.0})
        run = run_of(engine, Unsized(pilot=3))
        task = asyncio.create_task(run.result())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert not engine.claims


def tempered(shares: dict[str, float], tau: float) -> dict[str, float]:
    weights = {char: share ** (1 / tau) for char, share in shares.items()}
    total = sum(weights.values())
    return {char: weight / total for char, weight in weights.items()}


SHARES = {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}


async def test_every_position_is_drawn_at_its_own_temperature() -> None:
    """Chi-squared at six positions of 3000 answers, drawn in steps of two; false alarms: 1e-4."""
    schedule = Annealed(tau_max=1.8, tau_min=0.6, decay_tokens=5.0, warmup_tokens=1, base=0.8)
    engine = ToyEngine(lambda text: SHARES if len(text) < 6 else {END: 1.0})
    how = Sampling(schedule=schedule, max_step_tokens=2, max_tokens=6)
    counts: list[Counter[str]] = [Counter() for _ in range(6)]
    root = await engine.open(engine.render(MESSAGES))
    for seed in range(3000):
        prefix, text = root.fork(), ""
        while len(text) < 6:
            async for item in engine.sample(prefix, how, seeds=[seed]):
                if isinstance(item, Continuation):
                    prefix.release()
                    prefix, text = item.prefix, text + item.text
        prefix.release()
        for at, char in enumerate(text):
            counts[at][char] += 1
    for at, seen in enumerate(counts):
        expected = tempered(SHARES, schedule.temperature(at))
        found = stats.chisquare([seen[c] for c in SHARES], [3000 * expected[c] for c in SHARES])
        assert found.pvalue > FALSE_ALARM / len(counts), (at, seen)


async def test_early_choices_vary_more_and_late_ones_less() -> None:
    """Two choices, one early and one late: each share within 4.1 standard deviations of what is
    exact, so both together raise a false alarm less than once in 10,000 seeds."""
    table = one_of(
        {
            "p" + "x" * 28 + "r": 0.49,
            "p" + "x" * 28 + "s": 0.21,
            "q" + "x" * 28 + "r": 0.21,
            "q" + "x" * 28 + "s": 0.09,
        }
    )
    params = {"width": 512, "decay_tokens": 40.0, "warmup_tokens": 0, "tau_max": 1.5}
    result = await result_of(ToyEngine(table), "annealed", params, max_tokens=40)
    schedule = Annealed(1.5, 0.1, 40.0, 0)
    for at, char, share in ((0, "q", 0.3), (29, "s", 0.3)):
        expected = tempered({"rare": share, "usual": 1 - share}, schedule.temperature(at))["rare"]
        seen = sum(one.content[at] == char for one in result.candidates) / 512
        assert abs(seen - expected) < 4.1 * math.sqrt(expected * (1 - expected) / 512)
    assert schedule.temperature(0) > 1 > schedule.temperature(29)


async def test_a_side_question_is_not_annealed() -> None:
    engine = Watched(one_of({"4": 0.5, "5": 0.5}))
    unsized, params = Unsized(pilot=1), {"width": 8, "max_reply_tokens": 5}
    for seed in range(4):
        engine.hows.clear()
        await run_of(engine, unsized, "gen_select", params=params, seed=seed).result()
        assert engine.heats[:2] == [(None, 1), (unsized.sized([1]), 8)]
        assert [how.schedule for how, _ in engine.hows[2:]] == [None]
