"""The worked examples of annealed decoding, and what a schedule refuses."""

import math

import numpy as np
import pytest

from engines.base import Sampling
from engines.echo_model import draw, log_softmax
from search.schedules import Annealed, Unsized, decay_for, from_decay_freq

QUICK, SLOW = Annealed(decay_tokens=500), Annealed(decay_tokens=4000)
TABLE = [
    (0, 1, 1),
    (9, 1, 1),
    (10, 1.179799, 1.197497),
    (50, 1.094829, 1.187422),
    (91, 1.000386, 1.176989),
    (92, 0.997984, 1.176733),
    (100, 0.978597, 1.174685),
    (200, 0.708175, 1.148729),
    (300, 0.377881, 1.122116),
    (371, 0.1, 1.102813),
    (1000, 0.1, 0.915975),
    (2967, 0.1, 0.100393),
    (2968, 0.1, 0.1),
]
LOGITS = np.array([2.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(("position", "quick", "slow"), TABLE)
def test_temperatures(position: int, quick: float, slow: float) -> None:
    assert QUICK.temperature(position) == pytest.approx(quick, abs=1e-6)
    assert SLOW.temperature(position) == pytest.approx(slow, abs=1e-6)


def test_landmarks() -> None:
    assert QUICK.one_at == pytest.approx(91.160778, abs=1e-6)
    assert QUICK.floor_at == pytest.approx(370.968672, abs=1e-6)
    assert SLOW.one_at == pytest.approx(729.286227, abs=1e-6)
    assert SLOW.floor_at == pytest.approx(2967.749379, abs=1e-6)
    unit = Annealed(decay_tokens=1)
    assert unit.one_at == pytest.approx(0.1823, abs=5e-5)
    assert unit.floor_at == pytest.approx(0.7419, abs=5e-5)


def test_units_of_the_authors_code() -> None:
    assert from_decay_freq(25) == 500
    assert from_decay_freq(200) == 4000
    assert from_decay_freq(25, step=100) == 10_500
    assert from_decay_freq(25, step=10_000) == 800_000


def test_what_the_units_of_the_authors_code_come_to() -> None:
    """Its trainer leaves the factor 20 out; and late in training nothing cools any more."""
    assert Annealed(decay_tokens=from_decay_freq(25)).temperature(100) == (
        pytest.approx(0.978597, abs=1e-6)
    )
    assert Annealed(decay_tokens=25).temperature(100) == 0.1
    trained = {
        step: Annealed(decay_tokens=from_decay_freq(25, step)) for step in (36, 37, 163, 164)
    }
    assert trained[36].floor_at < 3072 < trained[37].floor_at
    assert trained[163].one_at < 3072 < trained[164].one_at


def test_a_decay_sized_for_a_length() -> None:
    decay = decay_for(200, 1.2, 0.3)
    assert decay == pytest.approx(311.597, abs=1e-3)
    assert (round(decay / 20, 2), round(decay / 20)) == (15.58, 16)
    assert Annealed(tau_min=0.3, decay_tokens=decay).floor_at == pytest.approx(200)


@pytest.mark.parametrize(
    ("length", "schedule", "mean"),
    [(200, SLOW, 1.164763), (400, QUICK, 0.669187), (1000, QUICK, 0.327675)],
)
def test_means(length: int, schedule: Annealed, mean: float) -> None:
    assert schedule.mean(length) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("tau", "shares", "entropy", "nucleus"),
    [
        (1.2, (0.586318, 0.254813, 0.110741, 0.048128), 1.051125, 3),
        (1.0, (0.643914, 0.236883, 0.087144, 0.032059), 0.947537, 3),
        (0.5, (0.864955, 0.117059, 0.015842, 0.002144), 0.455429, 2),
        (0.1, (0.999955, 0.000045, 0.0, 0.0), None, None),
    ],
)
def test_what_a_temperature_does(
    tau: float, shares: tuple[float, ...], entropy: float | None, nucleus: int | None
) -> None:
    """The shares that tokens are drawn with end where the example's sums do."""
    flat = Annealed(tau_max=tau, tau_min=tau, warmup_tokens=0)
    how = Sampling(temperature=flat.temperature(7))
    edge = 0.0
    for token, share in enumerate(shares):
        if share > 1e-5:
            assert draw(LOGITS, how, edge + 3e-6) == token
            assert draw(LOGITS, how, edge + share - 3e-6) == token
        edge += share
    if entropy is not None:
        assert -sum(one * math.log(one) for one in shares) == pytest.approx(entropy, abs=5e-6)
        nuclear = Sampling(temperature=tau, top_p=0.9)
        assert draw(LOGITS, nuclear, 1 - 1e-9) + 1 == nucleus


def test_log_ratio_of_model_and_proposal() -> None:
    hot = Annealed(tau_max=1.2, tau_min=1.2, warmup_tokens=0).temperature(0)
    ratio = log_softmax(LOGITS) - log_softmax(LOGITS / hot)
    assert ratio == pytest.approx((0.093703, -0.072964, -0.239630, -0.406297), abs=1e-6)


def test_no_drop_is_plain_sampling() -> None:
    flat = Annealed(tau_max=1, tau_min=1)
    assert {flat.temperature(at) for at in range(3000)} == {1.0}
    assert flat.segments(8) == [(0, 1.0)]


def test_without_end_the_decay_is_a_constant() -> None:
    endless = Annealed(decay_tokens=1e300)
    assert {endless.temperature(at) for at in (10, 1000, 10**9)} == {1.2}
    assert endless.segments(3)[0] == (0, 1.0)


@pytest.mark.parametrize("schedule", [Annealed(decay_tokens=0.1), QUICK])
def test_far_positions_do_not_overflow(schedule: Annealed) -> None:
    assert schedule.temperature(10**12) == 0.1


def test_the_warm_up_has_the_requests_own_temperature() -> None:
    schedule = Annealed(base=0.7, warmup_tokens=3)
    assert [schedule.temperature(at) for at in (0, 2)] == [0.7, 0.7]
    assert schedule.temperature(3) > 1.19


def test_at_the_end_of_the_warm_up_it_jumps_onto_the_curve() -> None:
    for schedule, curve in ((QUICK, 1.179799), (SLOW, 1.197497)):
        assert schedule.temperature(9) == 1 < schedule.temperature(10)
        assert schedule.temperature(10) == pytest.approx(curve, abs=1e-6)


def test_a_floor_inside_the_warm_up_waits_for_its_end() -> None:
    schedule = Annealed(decay_tokens=4, warmup_tokens=10)
    assert [schedule.temperature(at) for at in (9, 10)] == [1.0, 0.1]
    assert schedule.segments(2) == [(0, 1.0), (10, 0.1)]


def test_a_schedule_is_sized_by_the_median() -> None:
    sized = Unsized(tau_min=0.3).sized([90, 200, 4000])
    assert sized == Annealed(tau_min=0.3, decay_tokens=311.6)
    assert Unsized(tau_min=0.3, floor_ratio=0.5).sized([200]).decay_tokens == 155.8
    assert Unsized().sized([0]).decay_tokens > 0
    assert Unsized(base=0.6, warmup_tokens=2).sized([50]).temperature(1) == 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau_min": 0.0},
        {"tau_min": 1.3},
        {"tau_max": math.inf},
        {"tau_max": math.nan},
        {"decay_tokens": 0.0},
        {"decay_tokens": math.nan},
        {"warmup_tokens": -1},
        {"base": -0.1},
    ],
)
def test_what_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Annealed(**wrong)  # type: ignore[arg-type]


def test_no_piece_holds_no_schedule() -> None:
    with pytest.raises(ValueError, match="at least one"):
        QUICK.segments(0)
