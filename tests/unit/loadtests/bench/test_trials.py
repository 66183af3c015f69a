"""Fractional knobs, paired differences, and rows that survive a stop."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loadtests.bench.comparison import paired_z
from loadtests.bench.figures import Bench, Options
from loadtests.bench.trials import Contender, Lab, Rows
from models.evaluate import held_out


@pytest.mark.parametrize("width", [1.0, 3.25, 16.0, 12.9])
def test_a_fractional_width_is_its_mean_over_problems(width: float) -> None:
    widths = [Contender("beam", width).params_at(index)["width"] for index in range(1000)]
    assert np.mean(widths) == pytest.approx(width, abs=0.01)
    assert max(widths) - min(widths) <= 1


def test_a_contender_without_a_knob_has_its_other_parameters_only() -> None:
    assert Contender("single").params_at(3) == {}
    assert Contender("ets", 2.0, {"lambda_d": 0.0}).params_at(0) == {"lambda_d": 0.0, "width": 2}


def rows(right: list[int]) -> Rows:
    return Rows([{"right": one, "tokens": one, "seconds": one} for one in right])


def test_z_is_the_paired_difference_over_its_standard_error() -> None:
    one, other = rows([1, 1, 1, 0] * 25), rows([1, 0, 1, 0] * 25)
    difference = np.array([0, 1, 0, 0] * 25)
    expected = difference.mean() / (difference.std(ddof=1) / 10)
    assert paired_z(one, other) == pytest.approx(expected)
    assert paired_z(other, one) == pytest.approx(-expected)
    assert paired_z(one, one) == 0


class Answering:
    """Answers every problem rightly, and counts."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[tuple[str, Any]] = []
        problems = [one for seed in (0, 3) for one in held_out(40, seed)]
        self._answers = {one.text: one.answer for one in problems}
        self._stop_after = stop_after

    async def search(
        self, messages: Any, strategy: str, params: Any, seed: int, *, sampling: Any
    ) -> Any:
        if self._stop_after is not None and len(self.asked) >= self._stop_after:
            raise RuntimeError("stopped")
        self.asked.append((strategy, params))
        answer = SimpleNamespace(content=f"The answer is {self._answers[messages[0]['content']]}.")
        spent = SimpleNamespace(generated_tokens=10 * params.get("width", 1))
        tree = SimpleNamespace(peak_kv_tokens=5)
        result = SimpleNamespace(answers=(answer,), spent=spent, tree=tree)
        return result, SimpleNamespace(branches=[1, 2])


async def test_rows_are_kept_in_order_and_not_asked_for_twice(tmp_path: Path) -> None:
    bench = Bench("quality", Options(tmp_path, seed=3))
    fresh: Any = Answering()
    got = await Lab(bench, fresh, "test").run(Contender("beam", 2.5), range(40))
    assert got is not None
    assert len(fresh.asked) == len(got) == 40
    assert got.right.all()
    assert got.tokens.tolist() == [10 * params["width"] for _, params in sorted_calls(2.5, 40)]
    again: Any = Answering()
    kept = await Lab(bench, again, "test").run(Contender("beam", 2.5), range(40))
    assert kept is not None
    assert kept.tokens.tolist() == got.tokens.tolist()
    assert again.asked == []


async def test_a_probe_adds_columns(tmp_path: Path) -> None:
    bench = Bench("quality", Options(tmp_path))
    answering: Any = Answering()
    lab = Lab(bench, answering, "test", probe=lambda _, __, tree: {"size": len(tree.branches)})
    got = await lab.run(Contender("single"), range(3))
    assert got is not None
    assert got["size"].tolist() == [2, 2, 2]


def sorted_calls(width: float, count: int) -> list[tuple[str, Any]]:
    contender = Contender("beam", width)
    return [("beam", contender.params_at(index)) for index in range(count)]


async def test_a_failed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bench = Bench("quality", Options(tmp_path))
    failing: Any = Answering(stop_after=5)
    with pytest.raises(ExceptionGroup):
        await Lab(bench, failing, "test").run(Contender("single"), range(20))
    rest: Any = Answering()
    assert await Lab(bench, rest, "test").run(Contender("single"), range(20)) is not None
    assert 0 < len(rest.asked) < 20


async def test_no_time_means_no_rows(tmp_path: Path) -> None:
    now = [0.0]
    bench = Bench("quality", Options(tmp_path, limit_s=1), clock=lambda: now[0])
    now[0] = 2.0
    idle: Any = Answering()
    assert await Lab(bench, idle, "test").run(Contender("single"), range(3)) is None
    assert idle.asked == []
