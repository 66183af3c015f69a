"""The over-confident judge: its formula, and that it is over after three steps."""

import math

import numpy as np
import pytest

from engines.base import ChatMessage
from loadtests.bench.overconfident import Overconfident, distorted
from reward_models.base import Candidate, RewardStats, Score


def logit(value: float) -> float:
    return math.log(value / (1 - value))


@pytest.mark.parametrize(
    ("step", "slope", "noise"), [(1, 3.25, 1.5), (2, 2.5, 1.0), (3, 1.75, 0.5)]
)
def test_early_odds_are_stretched_and_shaken(step: int, slope: float, noise: float) -> None:
    odds = [logit(distorted(0.7, step, 0, str(number))) for number in range(2000)]
    # mean of 2,000 normal numbers: false alarm below 1e-6 at five standard errors
    assert np.mean(odds) == pytest.approx(slope * logit(0.7), abs=5 * noise / math.sqrt(2000))
    assert np.std(odds) == pytest.approx(noise, rel=0.1)


def test_from_the_fourth_step_on_nothing_changes() -> None:
    assert [distorted(0.37, step, 1, "a") for step in (4, 5, 20)] == [0.37] * 3


def test_the_same_text_gets_the_same_noise_and_another_seed_another() -> None:
    assert distorted(0.5, 1, 1, "a") == distorted(0.5, 1, 1, "a")
    assert distorted(0.5, 1, 1, "a") != distorted(0.5, 1, 2, "a")
    assert distorted(0.5, 1, 1, "a") != distorted(0.5, 1, 1, "b")


def test_certain_rewards_stay_finite() -> None:
    assert 0 <= distorted(0.0, 1, 0, "a") < 1e-6
    assert 1 - 1e-6 < distorted(1.0, 1, 0, "a") <= 1


class Steady:
    """Gives every step 0.5."""

    def __init__(self) -> None:
        self.info = None

    async def score(self, batch: list[Candidate]) -> list[Score]:
        return [Score(0.5, tuple(0.5 for _ in one.steps), 3) for one in batch]

    def stats(self) -> RewardStats:
        return RewardStats(tokens_computed=9)


async def test_every_step_is_distorted_by_the_text_up_to_it() -> None:
    judge = Overconfident(Steady(), seed=4)  # type: ignore[arg-type]
    messages: tuple[ChatMessage, ...] = ()
    steps = ("a\n", "b\n", "c\n", "d\n")
    (score,) = await judge.score([Candidate(messages, "".join(steps), (), steps)])
    assert score.steps == (
        distorted(0.5, 1, 4, "a\n"),
        distorted(0.5, 2, 4, "a\nb\n"),
        distorted(0.5, 3, 4, "a\nb\nc\n"),
        0.5,
    )
    assert score.value == 0.5
    assert (score.tokens_computed, judge.stats().tokens_computed) == (3, 9)
