"""The worked example of Feynman-Kac steering, and the trap in its history."""

import math

import pytest

from search.particles import effective_size, softmax
from search.steering import Potential, Steered, finish, steer

ESTIMATES = [-0.2, -1.0, -0.5, -0.1]


def weights(how: Potential, before: Steered | None = None) -> list[float]:
    start = before or Steered()
    return softmax([steer(start, one, 10.0, how)[0] for one in ESTIMATES])


@pytest.mark.parametrize("how", ["diff", "rt", "max"])
def test_e7_weights(how: Potential) -> None:
    found = weights(how)
    assert found == pytest.approx([0.265364, 0.000089, 0.013212, 0.721335], abs=1e-5)
    assert effective_size(found) == pytest.approx(1.692285, abs=1e-5)


def test_e7_the_trap() -> None:
    """A history that begins at 0 makes rewards below 0 count for nothing."""
    assert weights("max", Steered(highest=0.0)) == [0.25] * 4


@pytest.mark.parametrize("how", ["diff", "rt", "max"])
def test_all_potentials_together_weigh_by_the_reward(how: Potential) -> None:
    history, total = Steered(), 0.0
    for estimate in (-3.0, -0.5, -1.5):
        log_potential, history = steer(history, estimate, 2.5, how)
        total += log_potential
    total += finish(history, -0.25, 2.5)
    assert total == pytest.approx(2.5 * -0.25)


def test_the_potentials_by_hand() -> None:
    _, history = steer(Steered(), -3.0, 2.0, "max")
    assert (history.last, history.highest) == (-3.0, -3.0)
    assert steer(history, -4.0, 2.0, "max")[0] == -6.0
    assert steer(history, -4.0, 2.0, "diff")[0] == -2.0
    assert steer(history, -4.0, 2.0, "rt")[0] == -8.0
    assert math.isinf(Steered().highest)
