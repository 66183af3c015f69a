"""Every registered strategy keeps the laws of `search.conformance`."""

import math
import zlib
from dataclasses import replace
from typing import Any

import pytest

from engines.base import Capability, Sampling
from engines.echo import EchoEngine
from search.budget import Limits
from search.conformance import (
    CHECKS,
    Check,
    Subject,
    budgets_hold,
    same_seed_same_answer,
    streaming_changes_nothing,
)
from search.plugins import load
from search.registry import strategy_class
from search.run import RunRequest
from search.schedules import Unsized
from tests.toy_denoiser import ToyDiffusionEngine, sticky
from tests.toy_engine import END, ToyEngine, ToyJudge, ToyMultifurcation

BRIEF = Sampling(max_tokens=7)
"""Two whole steps and the beginning of a third. Laws cancel a run at every turn of the event loop,
so their cost grows with the square of its length."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "best_of_n": [{"width": 4}, {"width": 3, "aggregate": "min"}],
    "self_consistency": [{"width": 4}, {"width": 4, "vote": "weighted"}],
    "annealed": [
        {"width": 4},
        {"width": 3, "decay_tokens": 5.0, "warmup_tokens": 1, "choose": "weighted"},
        {"width": 4, "pilot": 1, "choose": "best"},
    ],
    "adaptive_consistency": [{"width": 5}, {"width": 4, "concurrency": 4, "threshold": 0.6}],
    "deep_confidence": [
        {"width": 4, "window": 3, "alternatives": 2},
        {"width": 4, "warmup": 1, "window": 2, "keep_ratio": 0.3, "measure": "tail"},
    ],
    "gen_select": [{"width": 3, "max_reply_tokens": 5}],
    "auto": [{"width": 6, "look": 2}, {"width": 5, "look": 3, "tree": "none", "hard_below": 0.9}],
    "beam": [{"width": 4}, {"width": 5, "keep": 1}],
    "dvts": [{"width": 6}, {"width": 5, "subtrees": 2, "choose": "best"}],
    "mcts": [
        {"width": 5, "children": 3},
        {"width": 4, "children": 2, "batch": 1, "backup": "max", "choose": "visits"},
        {"width": 4, "children": 3, "exploration": 2.0, "choose": "vote", "max_depth": 2},
    ],
    "rebase": [{"width": 6}, {"width": 5, "softmax_temperature": 0.05}],
    "ets": [
        {"width": 6},
        {"width": 6, "lambda_b": 0.0, "lambda_d": 0.0},
        {"width": 6, "embedder": "tfidf", "coverage": True, "node_cost": "tokens"},
    ],
    "particle_filter": [
        {"width": 4},
        {"width": 5, "finished_policy": "compete", "resampling": "multinomial", "choose": "vote"},
        {"width": 4, "resample_trigger": 0.5, "resampling": "residual", "choose": "sample"},
        {"width": 4, "mode": "reference", "weights": "incremental", "choose": "vote"},
    ],
    "particle_gibbs": [
        {"width": 3, "iterations": 2},
        {"width": 3, "iterations": 3, "mode": "reference", "weights": "incremental"},
    ],
    "entropic_particle_filter": [
        {"width": 4, "annealing": "bisect"},
        {"width": 4, "lookahead": "product"},
        {"width": 4, "lookahead": "mean", "reuse_successor": False, "weights": "incremental"},
    ],
}
VARIANTS["dts"] = [
    {"width": 1, "samples": 3, "merge": False, "lambda": 2},
    {"width": 3, "samples": 4, "choose": "best", "branch_levels": [2]},
]
VARIANTS["dts_star"] = [
    {"width": 1, "samples": 3, "merge": False},
    {"width": 3, "samples": 4, "lambda": 5.0, "capacity": 1.0, "alpha": 0.5},
    {"width": 2, "capacity": "inf", "lambda": "inf"},
]
VARIANTS["fk_steering"] = [
    {"width": 3},
    {"width": 3, "potential": "diff", "guesses": 2, "resample_every": 2, "resample_below": 1.0},
    {"width": 2, "potential": "rt", "choose": "sample", "resampling": "systematic"},
]
VARIANTS["saffron"] = [
    {"width": 4},
    {"width": 3, "top_p": 0.95, "min_new_tokens": 4},
    {"width": 1, "top_p": 0.3},
]
SUBJECTS = [
    (name, params) for name in load("bough.strategies") for params in VARIANTS.get(name, [{}])
]


def steps(text: str) -> dict[str, float]:
    """Lines of a few letters; a line that says the answer, or an end, after a while."""
    line = text.rsplit("\n", 1)[-1]
    if len(line) < 2:
        return {"a": 0.4, "b": 0.4, "c": 0.2}
    return {"\n": 0.6, "a": 0.2, END: 0.1 + 0.1 * (text.count("\n") > 1)}


def judge(text: str) -> float:
    """Any value, but the same for the same text; now and then none."""
    value = zlib.crc32(text.encode()) % 97
    return math.nan if value == 13 else value / 97


def judge_for(name: str) -> ToyJudge:
    """One that the strategy can use."""
    needs_rows = getattr(strategy_class(name), "needs_next_rewards", False)
    return ToyMultifurcation(judge) if needs_rows else ToyJudge(judge)


def engine_for(name: str) -> EchoEngine:
    """One that can carry the strategy."""
    if Capability.DENOISE in strategy_class(name).requires:
        return ToyDiffusionEngine(sticky("ab\n", 0.4), 6, kernel="any")
    return ToyEngine(steps, max_step_tokens=6)


def is_scheduled(name: str) -> bool:
    """Whether its engine draws one token behind the other, so that a schedule has a meaning."""
    return Capability.DENOISE not in strategy_class(name).requires


WITH_A_SCHEDULE = (same_seed_same_answer, streaming_changes_nothing, budgets_hold)


@pytest.mark.parametrize("check", WITH_A_SCHEDULE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", list(filter(is_scheduled, load("bough.strategies"))))
async def test_laws_under_a_schedule(name: str, check: Check) -> None:
    """Sized by a pilot, whose tokens are the budget's too."""
    await check(
        Scheduled(
            name=name,
            params=VARIANTS.get(name, [{}])[0],
            make_engine=lambda: engine_for(name),
            make_judge=lambda: judge_for(name),
            sampling=BRIEF,
        )
    )


class Scheduled(Subject):
    """A strategy under a schedule that the request names."""

    def request(self, seed: int = 7, limits: Limits | None = None) -> RunRequest:
        unsized = Unsized(tau_max=1.5, tau_min=0.5, warmup_tokens=2, pilot=2)
        return replace(super().request(seed, limits), unsized=unsized)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "params"), SUBJECTS, ids=str)
async def test_laws(name: str, params: dict[str, Any], check: Check) -> None:
    await check(
        Subject(
            name=name,
            params=params,
            make_engine=lambda: engine_for(name),
            make_judge=lambda: judge_for(name),
            sampling=BRIEF,
        )
    )
