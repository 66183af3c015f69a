"""Example A and C of the particle filtering specification, and laws of resampling."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from search.particles import (
    Resampling,
    effective_size,
    log_increment,
    log_odds,
    log_weight,
    resample,
    softmax,
)
from search.select import Aggregate, aggregated

REWARDS = (0.9, 0.6, 0.5, 0.2)
SCHEMES: tuple[Resampling, ...] = ("systematic", "stratified", "residual", "multinomial")


class Scripted(random.Random):
    """Gives the uniforms it was told."""

    def __init__(self, *uniforms: float) -> None:
        super().__init__()
        self._left = list(uniforms)

    def random(self) -> float:
        return self._left.pop(0)


def weights_a() -> list[float]:
    return softmax([log_odds(one) for one in REWARDS])


def test_weights_are_odds() -> None:
    logs = [log_odds(one) for one in REWARDS]
    assert logs == pytest.approx([2.197225, 0.405465, 0, -1.386294], abs=1e-6)
    assert softmax(logs) == pytest.approx([36 / 47, 6 / 47, 4 / 47, 1 / 47], abs=1e-12)
    assert softmax(logs) == pytest.approx([0.765957, 0.127660, 0.085106, 0.021277], abs=1e-6)
    assert effective_size(softmax(logs)) == pytest.approx(2209 / 1349, abs=1e-12)
    assert effective_size(softmax(logs)) == pytest.approx(1.637509, abs=1e-6)


def test_rewards_themselves_are_nearly_uniform_weights() -> None:
    weights = softmax(REWARDS)
    assert weights == pytest.approx([0.343912, 0.254776, 0.230531, 0.170781], abs=1e-6)
    assert effective_size(weights) == pytest.approx(3.766523, abs=1e-6)


def test_odds_of_the_prefix_count_a_step_again_and_again() -> None:
    """Two answers whose products differ by 1.29 are 40 times apart after three draws."""
    good, other = (0.9, 0.9, 0.9), (0.6, 0.95, 0.99)
    assert math.prod(good) / math.prod(other) == pytest.approx(1.2919, abs=1e-4)
    selected = [
        sum(log_weight(steps[:end], "prod") for end in (1, 2, 3)) for steps in (good, other)
    ]
    assert math.exp(selected[0]) == pytest.approx(103.214, abs=5e-3)
    assert math.exp(selected[1]) == pytest.approx(2.575, abs=5e-3)
    assert math.exp(selected[0] - selected[1]) == pytest.approx(40.1, abs=0.05)
    proper = [sum(map(log_increment, steps)) for steps in (good, other)]
    assert math.exp(proper[0] - proper[1]) == pytest.approx(1.2919, abs=1e-4)


def test_certain_rewards_have_finite_weights() -> None:
    assert log_odds(1.0) == pytest.approx(16.118096, abs=1e-6)
    assert log_odds(0.0) == pytest.approx(-16.118096, abs=1e-6)
    machine = 2.2e-16  # the floor of the authors' code
    assert log_odds(1.0, machine) == pytest.approx(36.04, abs=5e-3)
    assert log_odds(0.0, machine) == pytest.approx(-36.04, abs=2e-2)
    assert log_odds(1.0, 5e-6) == pytest.approx(math.log((1 - 5e-6) / 5e-6))


@pytest.mark.parametrize(
    ("scheme", "uniforms", "ancestors"),
    [
        ("systematic", (0.1,), [0, 0, 0, 1]),
        ("systematic", (0.3,), [0, 0, 0, 1]),
        ("systematic", (0.9,), [0, 0, 0, 2]),
        ("multinomial", (0.1, 0.8, 0.95, 0.5), [0, 1, 2, 0]),
        ("stratified", (0.5, 0.5, 0.9, 0.9), [0, 0, 0, 2]),
        ("residual", (0.5,), [0, 0, 0, 1]),
    ],
)
def test_ancestors(scheme: Resampling, uniforms: Sequence[float], ancestors: list[int]) -> None:
    assert resample(weights_a(), 4, scheme, Scripted(*uniforms)) == ancestors


@pytest.mark.parametrize(
    ("how", "value", "weight"),
    [("prod", 0.684, 0.772216), ("min", 0.8, 1.386294), ("last", 0.95, 2.944439)],
)
def test_aggregation(how: Aggregate, value: float, weight: float) -> None:
    assert aggregated((0.9, 0.8, 0.95), how) == value
    assert log_weight((0.9, 0.8, 0.95), how) == pytest.approx(weight, abs=1e-6)


def test_long_products_keep_their_order() -> None:
    worse, better = log_weight((0.3,) * 60, "prod"), log_weight((0.31,) * 60, "prod")
    assert log_odds(0.0) > better > worse


def test_a_flat_softmax_of_many() -> None:
    weights = softmax([1000.0, -1000.0, 1000.0], temperature=0.1)
    assert weights == [0.5, 0.0, 0.5]
    assert softmax([3.0, 3.0], temperature=50.0) == [0.5, 0.5]
    assert effective_size([0.1] * 10) == pytest.approx(10)
    assert effective_size([0.1] * 10) <= 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_of_weight_zero_is_drawn(scheme: Resampling) -> None:
    tenths = [0.0, *[0.1] * 10, 0.0]  # sums to 0.9999999999999999
    for uniform in (0.0, math.nextafter(1.0, 0.0)):
        drawn = resample(tenths, 64, scheme, Scripted(*[uniform] * 64))
        assert len(drawn) == 64
        assert set(drawn) <= set(range(1, 11))
    assert resample([0.0, 1.0], 3, scheme, Scripted(*[0.0] * 3)) == [1, 1, 1]
    assert resample([1.0], 0, scheme, random.Random(0)) == []


@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_equal_weights_keep_everyone(scheme: Resampling) -> None:
    for size in range(1, 50):
        ancestors = resample([1 / size] * size, size, scheme, random.Random(size))
        assert ancestors == list(range(size))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [4, 16])
def test_copies_are_unbiased(scheme: Resampling, count: int) -> None:
    """Mean copies are count times weight, for every particle.

    Copies lie in 0..count, so by Hoeffding's inequality the mean of R draws is off by more than
    count * sqrt(log(2 m / alpha) / (2 R)) for any of the m means of this test (4 schemes, 2
    counts, 4 particles) with probability at most alpha = 1e-6.
    """
    rounds, num_means, alpha = 20_000, 32, 1e-6
    rng = random.Random(20_250_201)
    weights = weights_a()
    copies = Counter[int]()
    for _ in range(rounds):
        copies.update(resample(weights, count, scheme, rng))
    bound = count * math.sqrt(math.log(2 * num_means / alpha) / (2 * rounds))
    for at, weight in enumerate(weights):
        assert copies[at] / rounds == pytest.approx(count * weight, abs=bound)
    assert bound < count * 0.03  # so that taking one particle's weight for another's fails


def test_systematic_copies_are_the_share_rounded() -> None:
    rng = random.Random(3)
    for _ in range(500):
        weights = softmax([rng.gauss(0, 2) for _ in range(7)])
        copies = Counter(resample(weights, 16, "systematic", rng))
        assert all(abs(copies[at] - 16 * weight) < 1 for at, weight in enumerate(weights))
