from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import arrivals
from loadtests.arrivals import ArrivalsError, schedule

kinds = st.sampled_from(arrivals.KINDS)
rates = st.floats(0.1, 1000)
seeds = st.integers(0, 2**32)


@given(kinds, rates, seeds, st.integers(1, 200), st.none() | st.floats(0.01, 10))
def test_a_schedule_rises_within_its_bounds_and_repeats(
    kind: str, rate: float, seed: int, requests: int, duration_s: float | None
) -> None:
    times = schedule(kind, rate, seed=seed, requests=requests, duration_s=duration_s)
    assert times == schedule(kind, rate, seed=seed, requests=requests, duration_s=duration_s)
    assert len(times) <= requests
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert all(0 <= time_s < (duration_s or math.inf) for time_s in times)
    if duration_s is None:
        assert len(times) == requests


def test_another_seed_gives_other_arrivals() -> None:
    assert schedule("poisson", 1, seed=1, requests=5) != schedule("poisson", 1, seed=2, requests=5)


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    assert schedule("constant", 4, duration_s=1) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("kind", "shape"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 9.0)])
def test_gaps_have_the_mean_and_spread_of_their_distribution(kind: str, shape: float) -> None:
    """Mean 1/rate and CV 1/sqrt(shape), each within 5 standard errors: false alarms below 1e-5."""
    n, rate = 40_000, 5.0
    times = [0.0, *schedule(kind, rate, seed=7, requests=n, shape=shape)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    cv = 1 / math.sqrt(shape)
    mean_s = statistics.fmean(gaps)
    assert abs(mean_s - 1 / rate) < 5 * cv / rate / math.sqrt(n)
    # Delta method: var(cv) n = cv^2 (1/4 (kurtosis - 1) - skewness cv + cv^2), of a gamma.
    kurtosis, skewness = 3 + 6 / shape, 2 / math.sqrt(shape)
    error = cv * math.sqrt(((kurtosis - 1) / 4 - skewness * cv + cv**2) / n)
    assert abs(statistics.stdev(gaps) / mean_s - cv) < 5 * error


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "burst", "rate": 1, "requests": 1},
        {"kind": "poisson", "rate": 0, "requests": 1},
        {"kind": "poisson", "rate": math.nan, "requests": 1},
        {"kind": "poisson", "rate": math.inf, "requests": 1},
        {"kind": "poisson", "rate": 1},
        {"kind": "poisson", "rate": 1, "requests": 0},
        {"kind": "poisson", "rate": 1, "requests": arrivals.MAX_REQUESTS + 1},
        {"kind": "poisson", "rate": 1, "duration_s": -1},
        {"kind": "gamma", "rate": 1, "requests": 1, "shape": 0},
        {"kind": "constant", "rate": 1e9, "duration_s": 60},
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ArrivalsError):
        schedule(**arguments)  # type: ignore[arg-type]
