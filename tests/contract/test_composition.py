"""Every strategy with every schedule, judge, aggregate, drafter and budget, streamed or not.

All pairs of values meet.

Time is the event loop's own here and passes with what the engine gives, a second an item, so that
deadlines cut at the same place in every run.
"""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest

from engines.base import Capability, Sampling
from reward_models.base import RewardKind, RewardModel
from reward_models.constant import ConstantJudge
from reward_models.verifier import VerifierJudge
from search.budget import Limits
from search.errors import BudgetExhausted, InvalidParameter, MissingRewardModel, SearchError
from search.plugins import load
from search.registry import make_strategy, needs_next_rewards, strategy_class
from search.run import Piece, Result, Run, RunRequest
from search.schedules import Annealed, Unsized
from tests.pairwise import Case, pairwise_cases
from tests.toy_engine import END, MESSAGES, ToyEngine, ToyJudge, ToyMultifurcation

WIDTH = 3
ITEM_S = 1.0
PARAMS: dict[str, dict[str, Any]] = {
    "gen_select": {"max_reply_tokens": 5},
    "deep_confidence": {"warmup": 1, "window": 3, "alternatives": 2},
    "self_consistency": {"vote": "weighted"},
    "annealed": {"choose": "weighted"},
}
"""Beside the width, where the defaults would leave half of a strategy idle on short answers."""

SCHEDULES = {
    "no schedule": {},
    "sized": {"schedule": Annealed(1.5, 0.5, 20.0, 2)},
    "unsized": {"unsized": Unsized(tau_max=1.5, tau_min=0.5, warmup_tokens=2, pilot=2)},
}
JUDGES = ("no judge", "process", "outcome", "multifurcation", "constant", "verifier")
LIMITS = {
    "no limit": Limits(),
    "tokens": Limits(generated_tokens=23),
    "candidates": Limits(candidates=4),
    "reward calls": Limits(reward_calls=2),
    "deadline": Limits(wall_ms=19_000),
    "no candidate": Limits(candidates=0),
}
FACTORS = {
    "strategy": [
        name
        for name, kind in load("bough.strategies").items()
        if Capability.DENOISE not in kind.requires  # these have an engine of their own kind
    ],
    "schedule": list(SCHEDULES),
    "judge": list(JUDGES),
    "aggregate": [None, "model"],
    "drafter": [None, "adaptive", "ngram"],
    "limit": list(LIMITS),
    "streams": [False, True],
}


class PacedLoop(asyncio.SelectorEventLoop):
    """Its time stands still until somebody moves it."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += ITEM_S


def sums(text: str) -> Mapping[str, float]:
    """One to three lines, each a sum that may be wrong."""
    line = text.rsplit("\n", 1)[-1]
    if len(line) == 2:
        return {"2": 0.3, "3": 0.3, "5": 0.4}
    if line or not text:
        return {"1=2\n"[len(line)] if len(line) < 4 else END: 1.0}
    return {END: 1.0} if text.count("\n") == 3 else {END: 0.4, "1": 0.6}


def value(text: str) -> float:
    """Any value, but the same for the same text."""
    return zlib.crc32(text.encode()) % 97 / 96


def judge_of(kind: str) -> RewardModel | None:
    if kind == "no judge":
        return None
    if kind == "constant":
        return ConstantJudge("constant")
    if kind == "verifier":
        return VerifierJudge("verifier")
    if kind == "multifurcation":
        return ToyMultifurcation(value)
    return ToyJudge(value, RewardKind(kind))


def params_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """The case's parameters, as far as the strategy has them."""
    strategy = case["strategy"]
    wanted = {"width": WIDTH, "aggregate": case.get("aggregate"), **PARAMS.get(strategy, {})}
    known = strategy_class(strategy).Params.model_fields
    return {name: value for name, value in wanted.items() if name in known}


def is_carried(case: Mapping[str, Any]) -> bool:
    """Whether nothing in it is refused, as far as it is known."""
    return "strategy" not in case or refusal_of(case) is None


def refusal_of(case: Mapping[str, Any]) -> type[SearchError] | None:
    """Judging strategies want a judge, of their kind; the verifier cannot read an answer whole."""
    params = params_of(case)
    if case.get("judge") == "no judge":
        return MissingRewardModel if make_strategy(case["strategy"], params).needs_judge else None
    needs_rows = getattr(strategy_class(case["strategy"]), "needs_next_rewards", False)
    if needs_rows and case.get("judge", "multifurcation") != "multifurcation":
        return MissingRewardModel
    is_whole = case.get("judge") == "verifier" and params.get("aggregate") == "model"
    return InvalidParameter if is_whole else None


CASES = pairwise_cases(FACTORS, is_carried)


def make_run(
    case: Case, engine: ToyEngine, judge: RewardModel | None, clock: Callable[[], float]
) -> Run:
    planned = SCHEDULES[case["schedule"]]
    request = RunRequest(
        strategy=case["strategy"],
        params=params_of(case),
        messages=MESSAGES,
        sampling=Sampling(
            max_tokens=20,
            schedule=planned.get("schedule"),  # type: ignore[arg-type]
            drafter=case["drafter"],
        ),
        seed=17,
        limits=LIMITS[case["limit"]],
        run_id="composed",
        unsized=planned.get("unsized"),  # type: ignore[arg-type]
    )
    return Run(request, engine=engine, judge=judge, clock=clock)


async def played(case: Case, loop: PacedLoop) -> tuple[Run, Result | BudgetExhausted, str]:
    """The run, what came of it, and what was streamed of it; every claim is back."""
    engine, judge = ToyEngine(sums, context_tokens=2000), judge_of(case["judge"])
    engine.on_item = loop.tick
    run = make_run(case, engine, judge, loop.time)
    came: Result | BudgetExhausted
    text = ""
    try:
        if case["streams"]:
            items = [item async for item in run.stream()]
            text = "".join(item.text for item in items if isinstance(item, Piece))
            (came,) = (item for item in items if isinstance(item, Result))
        else:
            came = await run.result()
    except BudgetExhausted as err:
        came = err
    assert not engine.claims
    assert engine.stats().pages_claimed == 0
    assert judge is None or judge.stats().pages_claimed == 0
    assert engine.stats().running == 0
    assert run.tree.is_closed
    return run, came, text


def check_spending(run: Run, limits: Limits) -> None:
    spent = run.budget.spent
    for what in ("generated_tokens", "candidates", "reward_calls"):
        bound = getattr(limits, what)
        assert bound is None or getattr(spent, what) <= bound
    if limits.wall_ms is not None:  # each call in flight may still see the item it waits for
        assert spent.wall_ms <= limits.wall_ms + 1000 * ITEM_S * WIDTH


def check_answer(case: Case, run: Run, result: Result, text: str) -> None:
    limits = LIMITS[case["limit"]]
    answer = result.answers[0]
    assert answer.content.strip()
    assert not case["streams"] or text == answer.content
    reasons = {"no limit": {"done"}, "deadline": {"done", "deadline"}}
    assert result.stop_reason in reasons.get(case["limit"], {"done", "budget"})
    assert run.tree.snapshot()["stop_reason"] == result.stop_reason
    assert run.tree.snapshot()["chosen"][0] == answer.branch
    if result.stop_reason == "deadline":
        assert result.spent.wall_ms >= (limits.wall_ms or 0)
    if result.stop_reason == "done" and limits.wall_ms is None:
        assert answer.finish_reason == "stop"
    if case["schedule"] == "unsized":
        assert "decay_tokens" in result.resolved
    if case["judge"] == "no judge":
        assert result.spent.reward_calls == 0
    assert 0 <= result.spent.accepted_tokens <= result.spent.drafted_tokens
    if case["drafter"] is None and case["strategy"] != "draft_verify":
        assert result.spent.drafted_tokens == 0


def play(case: Case) -> tuple[Run, Result | BudgetExhausted, str]:
    with asyncio.Runner(loop_factory=PacedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, PacedLoop)
        return runner.run(played(case, loop))


@cache
def first_play(at: int) -> tuple[Run, Result | BudgetExhausted, str]:
    """The play of the case at this place that several tests look at."""
    return play(CASES[at])


@pytest.mark.parametrize(
    "at", range(len(CASES)), ids=["-".join(map(str, case.values())) for case in CASES]
)
def test_all_pairs(at: int) -> None:
    case, seen = CASES[at], []
    for run, came, text in (first_play(at), play(CASES[at])):
        check_spending(run, LIMITS[case["limit"]])
        if isinstance(came, Result):
            check_answer(case, run, came, text)
            seen.append((came, text))
        else:
            assert case["limit"] not in ("no limit", "deadline")
            assert not any(one.text.strip() for one in run.tree.branches)
            seen.append((str(came), text))
    assert seen[0] == seen[1]


DECIDES = ("strategy", "judge", "aggregate")
"""What a refusal depends on."""

REFUSED = [
    case
    for values in product(*(FACTORS[name] for name in DECIDES))
    if not is_carried(case := dict(zip(DECIDES, values, strict=True)))
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(map(str, case.values())))
def test_what_is_refused_is_refused_before_any_work(case: Case) -> None:
    wanted = refusal_of(case)
    assert wanted is not None
    for schedule, drafter in product(FACTORS["schedule"], FACTORS["drafter"]):
        whole = {**case, "schedule": schedule, "drafter": drafter, "limit": "tokens"}
        engine = ToyEngine(sums)
        with pytest.raises(wanted, match=case["strategy"]):
            make_run(whole, engine, judge_of(case["judge"]), lambda: 0.0)
        assert not engine.calls


def test_the_cases_cover_every_pair_that_is_carried() -> None:
    full = [dict(zip(FACTORS, one, strict=True)) for one in product(*FACTORS.values())]
    wanted = {pair for case in full if is_carried(case) for pair in pairs_of(case)}
    assert {pair for case in CASES for pair in pairs_of(case)} == wanted
    assert all(map(is_carried, CASES))
    assert len(CASES) < 2 * len(FACTORS["strategy"]) * len(LIMITS) < len(full) / 8


@pytest.mark.parametrize("strategy", FACTORS["strategy"])
def test_a_drafter_changes_no_answer(strategy: str) -> None:
    """Nor what is spent on it, and some of it was drafted."""
    judge = "multifurcation" if needs_next_rewards(strategy_class(strategy)) else "process"
    usual = {"strategy": strategy, "judge": judge, "schedule": "sized", "limit": "no limit"}
    plain, *drafted = [
        play({**usual, "aggregate": None, "streams": True, "drafter": drafter})
        for drafter in (None, "adaptive", "ngram")
    ]
    assert isinstance(plain[1], Result)
    for run, came, text in drafted:
        assert isinstance(came, Result)
        assert text == plain[2]
        assert came.answers == plain[1].answers
        assert came.spent.generated_tokens == plain[1].spent.generated_tokens
        assert [one.whole_text for one in run.tree.branches] == [
            one.whole_text for one in plain[0].tree.branches
        ]


def pairs_of(case: Mapping[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
    return list(combinations(case.items(), 2))


def test_what_the_cases_reach() -> None:
    """Each limit ends some run early and lets others answer; candidates differ, so one is asked."""
    ends: dict[str, set[str]] = {limit: set() for limit in LIMITS}
    resolved: set[str] = set()
    for at, case in enumerate(CASES):
        _, came, _ = first_play(at)
        ends[case["limit"]].add(came.stop_reason if isinstance(came, Result) else "nothing")
        resolved.add(came.resolved if isinstance(came, Result) else "")
    assert ends["no limit"] == {"done"}
    assert ends["no candidate"] == {"nothing"}
    assert "deadline" in ends["deadline"]
    for limit in ("tokens", "candidates", "reward calls"):
        assert "budget" in ends[limit]
    assert any("the model named no candidate" in one for one in resolved)
