"""Examples B and D of the particle filtering specification, and laws of annealing."""

import math
import random

import pytest

from search.entropic import (
    Annealing,
    Lookahead,
    horizon,
    is_collapsing,
    modulated,
    normalised_entropy,
    temperature,
)
from search.particles import effective_size, log_odds, resample, softmax
from search.strategies.entropic_particle_filter import (
    EntropicParticleFilter,
    EntropicParticleFilterParams,
)
from tests.unit.search.test_particles import Scripted

LOGS_B = [log_odds(one) for one in (0.999, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)]
METHODS: tuple[Annealing, ...] = ("ess", "entropy", "base", "bisect")


def test_the_collapsed_cloud() -> None:
    weights = softmax(LOGS_B)
    expected = [0.988611, 0.008906, 0.000990, 0.000660, 0.000424, 0.000247, 0.000110, 0.000052]
    assert weights == pytest.approx(expected, abs=1e-6)
    assert effective_size(weights) == pytest.approx(1.023089, abs=1e-6)
    assert effective_size(weights) / 8 == pytest.approx(0.127886, abs=1e-6)
    assert normalised_entropy(weights) == pytest.approx(0.034583, abs=1e-6)


def test_the_entropy_of_example_a() -> None:
    entropy = normalised_entropy(softmax([log_odds(one) for one in (0.9, 0.6, 0.5, 0.2)]))
    assert entropy == pytest.approx(0.547219, abs=1e-6)
    assert entropy * math.log(4) == pytest.approx(0.758607, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "ess", "entropy", "base", "size"),
    [
        (2, 7.330741, 10.535026, 1.937500, 6.326914),
        (8, 5.864593, 3.624013, 1.750000, 5.485088),
        (15, 4.154087, 2.052873, 1.531250, 3.851909),
    ],
)
def test_temperatures(step: int, ess: float, entropy: float, base: float, size: float) -> None:
    progress = step / 32
    assert is_collapsing(LOGS_B, progress, 0.5, 0.5)
    found = [temperature(LOGS_B, progress, how) for how in METHODS[:3]]
    assert found == pytest.approx([ess, entropy, base], abs=2e-6)
    assert effective_size(softmax(LOGS_B, found[0])) == pytest.approx(size, abs=2e-6)


def test_the_gate_is_strict_in_both() -> None:
    assert not is_collapsing(LOGS_B, 16 / 32, 0.5, 0.5)
    assert not is_collapsing([0.0] * 8, 0.0, 1.0, 0.5)  # ESS / N is 1
    assert not is_collapsing([0.0, -1e3], 0.0, 0.5, 0.5)  # of two it is never below one half


@pytest.mark.parametrize("how", ["ess", "entropy", "base"])
def test_the_gate_of_the_strategy(how: Annealing) -> None:
    """The table of the example, its last row included, with the strategy's own defaults."""
    params = EntropicParticleFilterParams(annealing=how)
    assert (params.ess_threshold, params.early_phase) == (0.5, 0.5)
    heat = EntropicParticleFilter(params)._temperature
    for step in (2, 8, 15):
        assert heat(LOGS_B, step / 32) == temperature(LOGS_B, step / 32, how) > 1
    assert heat(LOGS_B, 16 / 32) == 1
    assert effective_size(softmax(LOGS_B, heat(LOGS_B, 16 / 32))) == (
        pytest.approx(1.023089, abs=1e-6)
    )


def test_the_entropy_method_may_ask_for_more_than_there_are_particles() -> None:
    assert temperature(LOGS_B, 1 / 32, "entropy") == pytest.approx(15.4, abs=0.05)


def test_annealed_ancestors() -> None:
    flat = softmax(LOGS_B, temperature(LOGS_B, 2 / 32, "ess"))
    expected = [0.285376, 0.150110, 0.111235, 0.105250, 0.099093, 0.092069, 0.082427, 0.074440]
    assert flat == pytest.approx(expected, abs=2e-6)
    assert resample(softmax(LOGS_B), 8, "systematic", Scripted(0.5)) == [0] * 8
    assert resample(flat, 8, "systematic", Scripted(0.5)) == [0, 0, 1, 2, 3, 4, 5, 7]


def test_bisection_reaches_its_target() -> None:
    found = temperature(LOGS_B, 0.9, "bisect", 4 / 8)
    assert found == pytest.approx(4.282106, abs=2e-6)
    assert 1 / found == pytest.approx(0.233530, abs=1e-6)
    assert effective_size(softmax(LOGS_B, found)) == pytest.approx(4, abs=1e-9)
    assert temperature([0.0, 0.1], 0.0, "bisect", 0.5) == 1.0


@pytest.mark.parametrize("how", METHODS)
def test_annealing_only_flattens(how: Annealing) -> None:
    rng = random.Random(4)
    for _ in range(300):
        logs = [rng.gauss(0, 6) for _ in range(rng.randint(1, 20))]
        found = temperature(logs, rng.random(), how, rng.random())
        assert found >= 1
        plain = effective_size(softmax(logs))
        assert effective_size(softmax(logs, found)) >= plain * (1 - 1e-9)
        assert math.fsum(softmax(logs, found)) == pytest.approx(1, abs=1e-12)


def test_two_equal_particles_have_all_the_entropy() -> None:
    assert normalised_entropy([0.5, 0.5]) == pytest.approx(1)
    assert normalised_entropy([1.0]) == 1
    assert normalised_entropy([1.0, 0.0]) == 0
    assert temperature([0.0, -1e5], 0.0, "entropy") > 1e6  # no division by zero


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("product", [0.054577, 0.873231, 0.056598, 0.015593]),
        ("successor", [0.019108, 0.687898, 0.178344, 0.114650]),
        ("mean", [0.152605, 0.610419, 0.155405, 0.081571]),
    ],
)
def test_looking_ahead(how: Lookahead, expected: list[float]) -> None:
    own = [log_odds(one) for one in (0.9, 0.8, 0.5, 0.3)]
    ahead = [log_odds(one) for one in (0.2, 0.9, 0.7, 0.6)]
    assert softmax(own) == pytest.approx([0.623762, 0.277228, 0.069307, 0.029703], abs=1e-6)
    weights = softmax([modulated(a, b, how) for a, b in zip(own, ahead, strict=True)])
    assert weights == pytest.approx(expected, abs=1e-6)
    assert resample(softmax(own), 4, "systematic", Scripted(0.5)) == [0, 0, 1, 1]
    if how == "product":
        assert resample(weights, 4, "systematic", Scripted(0.5)) == [1, 1, 1, 1]


def test_the_horizon() -> None:
    assert horizon([], 40) == 40
    assert horizon([5, 7, 30], 40) == 7
