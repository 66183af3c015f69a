"""How sure a vote is: by hand, and against drawn posteriors."""

import numpy as np
import pytest

from search.posterior import (
    beta_sureness,
    dirichlet_sureness,
    fewest_to_decide,
    is_certain,
    is_decided,
    sureness,
    with_judgement,
)

DRAWS = 200_000
SPREAD = 5 * (0.25 / DRAWS) ** 0.5  # five standard errors: false alarms below 1e-6 a case


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, 1 / 2),
        (1, 0, 3 / 4),
        (3, 0, 15 / 16),
        (4, 0, 31 / 32),
        (2, 2, 1 / 2),
        # P(X > 1/2) under Beta(4, 2) is P(at least 2 of 5 coins are tails) = 1 - 6/32
        (3, 1, 26 / 32),
        (1, 3, 6 / 32),
    ],
)
def test_two_answers_by_hand(first: int, second: int, expected: float) -> None:
    assert beta_sureness(first, second) == pytest.approx(expected, abs=1e-12)
    assert dirichlet_sureness([first, second]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "counts", [[4, 2, 1], [2, 1, 1, 1], [10, 3, 2, 2, 1], [5, 5, 0.5], [60, 40, 30]]
)
def test_more_answers_against_drawn_posteriors(counts: list[float]) -> None:
    draws = np.random.default_rng(7).dirichlet(np.array(counts) + 1, DRAWS)
    drawn = float((draws.argmax(axis=1) == 0).mean())
    assert dirichlet_sureness(counts) == pytest.approx(drawn, abs=SPREAD)
    two = np.random.default_rng(8).beta(counts[0] + 1, counts[1] + 1, DRAWS)
    assert sureness(counts) == pytest.approx(float((two > 0.5).mean()), abs=SPREAD)


def test_equal_answers_share_the_posterior() -> None:
    assert dirichlet_sureness([1, 1, 1]) == pytest.approx(1 / 3, abs=1e-6)
    assert dirichlet_sureness([7] * 5) == pytest.approx(1 / 5, abs=1e-6)


def test_nothing_is_sure_without_votes() -> None:
    assert sureness([]) == 0
    assert sureness([0]) == 0
    assert not is_certain([], 0)


def test_four_that_agree_decide() -> None:
    assert not is_decided([3], 13, 0.95, "beta")
    assert is_decided([4], 12, 0.95, "beta")
    assert fewest_to_decide([], 16, 0.95, "beta") == 4
    # Beta(2 + k, 3) reaches 0.95 with k = 6: 1 - (1 + 10 + 45) / 1024 = 0.945 is one too few
    assert beta_sureness(2 + 5, 2) == pytest.approx(1 - 56 / 1024)
    assert fewest_to_decide([2, 2], 12, 0.95, "beta") == 6
    assert fewest_to_decide([2, 2], 12, 0.95, "dirichlet") == 6
    assert fewest_to_decide([2, 1, 1], 12, 0.95, "beta") == 4
    assert fewest_to_decide([2, 1, 1], 12, 0.95, "dirichlet") == 5


def test_the_certain_rule() -> None:
    assert is_certain([3, 1], 1)
    assert not is_certain([3, 1], 2), "the runner-up could draw level"
    assert is_certain([2], 1)
    assert fewest_to_decide([3, 2], 2, 0.95, "beta") == 1, "4 to 2 with one to come"
    assert fewest_to_decide([1, 1], 1, 0.95, "beta") == 1
    assert not is_decided([400], 500, 1, "beta"), "a threshold of 1 asks for certainty"


def test_a_judgement_adds_its_log_odds() -> None:
    assert with_judgement(0.875, 0.5) == pytest.approx(0.875)
    # odds 7 times odds 9
    assert with_judgement(0.875, 0.9) == pytest.approx(63 / 64)
    assert with_judgement(0.9, 0.1) == pytest.approx(0.5)
    assert with_judgement(0.875, 1.0) == pytest.approx(7 * 99 / (7 * 99 + 1))
    assert 0 < with_judgement(0.0, 1.0) < 1e-6
