"""What the bench of denoising trees reads out of runs."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loadtests.bench.diffusion_quality import (
    GRID,
    best_at,
    curve_of,
    distinct_trigrams,
    mixed,
    probe,
    reached,
)
from loadtests.bench.figures import Bench, Options
from loadtests.bench.saplings import Saplings
from loadtests.bench.trials import Contender, Lab, Rows
from tests.toy_denoiser import ToyDiffusionEngine, sticky
from tests.toy_engine import ToyJudge


def event(kind: str, **data: Any) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, data=data)


def test_the_curve_has_a_point_where_something_was_better() -> None:
    events = [
        event("grown", nfe=3),
        event("grown", nfe=2),
        event("scored", value=0.5),
        event("grown", nfe=4),
        event("scored", value=0.4),
        event("grown"),
        event("scored", value=0.9),
    ]
    tree: Any = SimpleNamespace(events=lambda: iter(events))
    assert curve_of(tree) == [(5, 0.5), (9, 0.9)]


def test_the_best_after_so_many_evaluations() -> None:
    curve = [(5, 0.5), (9, 0.9)]
    assert [best_at(curve, spent) for spent in (4, 5, 8.9, 9, 100)] == [0, 0.5, 0.5, 0.9, 0.9]


def on_grid(start: int, count: int) -> Rows:
    """Rows whose best is 1 from the grid's place `start` on, and 0 before."""
    half = range(1, GRID // 2 + 1)
    return Rows([{f"best{step}": float(step >= start) for step in half} for _ in range(count)])


def test_the_share_is_where_the_mean_is_reached() -> None:
    found = reached(on_grid(12, 40), np.full(40, 0.9), 1)
    assert (found.value, found.low, found.high, found.n) == (12 / 60, 12 / 60, 12 / 60, 40)
    half = Rows.joined([on_grid(6, 20), on_grid(24, 20)])
    assert reached(half, np.full(40, 0.5), 1).value == 6 / 60
    assert reached(half, np.full(40, 0.6), 1).value == 24 / 60
    assert reached(on_grid(12, 40), np.full(40, 1.1), 1).value == 1.0


def test_trigrams() -> None:
    assert distinct_trigrams(["a b c d", "a b c"]) == pytest.approx(2 / 3)
    assert distinct_trigrams(["a b"]) == 0


def test_sums_and_tales_take_turns() -> None:
    texts = [str(one.messages[-1]["content"]) for one in mixed(3, "test")(5)]
    assert [("Tell of" in one or "A tale of" in one) for one in texts] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert len(set(texts)) == 5


async def test_rows_of_real_runs(tmp_path: Path) -> None:
    """best64 is the mean over blocks of the first 64 samples; curves end at the answer's reward."""
    engine = ToyDiffusionEngine(sticky("abcd", 0.6), 6, kernel="any")

    def worth(text: str) -> float:
        return round(sum(map(ord, text)) % 97 / 96, 5)

    judge = ToyJudge(worth)
    bench = Bench("diffusion", Options(out=tmp_path, n=2))
    saplings = Saplings(engine, judge, 6)
    lab = Lab(bench, saplings, "test", name="t", source=mixed(0, "test"), probe=probe)
    plain = await lab.run(Contender("best_of_n", 128), range(2))
    tree = await lab.run(Contender("dts_star", 0, {"samples": 8}), range(2))
    assert plain is not None
    assert tree is not None
    assert (plain["best64"] <= plain["best256"]).all()
    assert (plain["best256"] == plain["reward"]).all()
    first = [worth(str(text)) for text in plain.raw("content64")]
    second = [2 * mean - one for mean, one in zip(plain["best64"], first, strict=True)]
    assert [*map(max, first, second)] == pytest.approx(list(plain["best256"]))
    for curve, reward, nfe in zip(tree.raw("curve"), tree["reward"], tree["nfe"], strict=True):
        assert curve[-1][1] == reward
        assert curve[-1][0] <= nfe <= 8 * 6
        assert not math.isnan(reward)
    assert all(
        json.loads(line)["curve"] for line in (tmp_path / "t.test.jsonl").read_text().splitlines()
    )
