"""The counter of compute, and what a baseline needs to be as safe."""

import math

import numpy as np
import pytest

from loadtests.bench.safety_counter import (
    Point,
    cheapest,
    crossing,
    ratio_at_equal_success,
    scal_eff,
)


@pytest.mark.parametrize(
    ("limit", "compute", "success", "value"),
    [
        (500, 122.12, 0.781, 1.8049),
        (500, 319.54, 0.562, 0.7967),
        (100, 80.70, 0.906, 0.2367),
        (100, 86.92, 0.875, 0.1602),
    ],
)
def test_scal_eff_is_that_of_the_paper(
    limit: float, compute: float, success: float, value: float
) -> None:
    assert scal_eff(limit, compute, success) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_scal_eff_refuses_what_has_no_logarithm(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        scal_eff(*wrong)


def test_a_curve_is_interpolated_in_the_log_of_compute() -> None:
    points = [(100.0, 0.2), (1.0, 0.8), (10.0, 0.6)]  # in any order
    found = crossing(points, 0.4)
    assert found.is_reached
    assert found.compute == pytest.approx(10 * math.sqrt(10))
    assert crossing(points, 0.2).compute == pytest.approx(100)
    assert crossing(points, 0.9) == (1.0, True)
    assert crossing(points, 0.1) == (100.0, False)


def test_the_cheapest_baseline_counts_and_a_bound_claims_no_more_than_was_measured() -> None:
    slow, quick = [(1.0, 0.8), (100.0, 0.2)], [(1.0, 0.7), (8.0, 0.3)]
    assert cheapest([slow, quick], 0.3).compute == pytest.approx(8.0)
    assert cheapest([slow, quick], 0.2).compute == pytest.approx(100)
    # none gets there: one of them may do so right behind what it was measured at
    assert cheapest([slow, quick], 0.1) == (8.0, False)


def test_the_ratio_has_an_interval_that_follows_the_prompts() -> None:
    rng = np.random.default_rng(3)
    hardness = rng.random(400)

    def point(compute: float, rate: float) -> Point:
        return Point(compute, (hardness < rate).astype(float))

    ours = point(10.0, 0.4)
    got, is_reached = ratio_at_equal_success(ours, [[point(10.0, 0.6), point(40.0, 0.3)]], 0)
    assert is_reached
    assert got.low < got.value < got.high
    assert got.value == pytest.approx(10 / (10 * 4 ** (2 / 3)), rel=0.1)
    bound, is_reached = ratio_at_equal_success(ours, [[point(10.0, 0.9), point(40.0, 0.8)]], 0)
    assert not is_reached
    assert bound.value == bound.low == bound.high == 0.25
