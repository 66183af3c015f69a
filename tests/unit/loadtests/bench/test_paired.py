"""Bootstrap intervals of paired differences."""

import numpy as np
import pytest

from loadtests.bench import paired

RNG = np.random.default_rng(5)
HARDNESS = RNG.random(800)


def test_what_all_share_cancels_out() -> None:
    one = (HARDNESS > 0.4).astype(float)
    other = (HARDNESS > 0.5).astype(float)
    found = paired.difference(one, other)
    assert found.value == pytest.approx((one - other).mean())
    # unpaired, the interval would be wider than 0.09
    assert found.low < found.value < found.high < found.low + 0.05


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(100):
        draws = np.random.default_rng(seed).normal(0.3, 1, (2, 120))
        found = paired.difference(draws[0] + 0.5, draws[1], seed)
        hits += found.low <= 0.5 <= found.high
    # 95 of 100 are expected; 86 or fewer has a chance below 0.1 % if the rate is 0.95
    assert hits > 86


def test_a_quotient_and_what_it_gains() -> None:
    one, other = np.full(10, 3.0) + HARDNESS[:10], np.full(10, 2.0) + HARDNESS[:10]
    ratio = paired.quotient(one, other)
    assert ratio.value == pytest.approx(one.mean() / other.mean())
    gain = paired.relative_gain(one, other)
    assert gain.value == pytest.approx(ratio.value - 1)
    assert (gain.low, gain.high) == pytest.approx((ratio.low - 1, ratio.high - 1))


def test_where_nothing_varies_the_interval_is_the_point() -> None:
    same = np.ones(5)
    assert paired.difference(same, same) == paired.Measured(0.0, 5, 0.0, 0.0)
    assert paired.mean(np.array([2.0])) == paired.Measured(2.0, 1, 2.0, 2.0)
