"""Weighted particles: log-weights from rewards, effective size, resampling. Pure functions.

Source: Puri et al., "Rollout Roulette", arXiv 2502.01618 §3, and its_hub 1.2.0; the resampling
schemes are those of Douc, Cappé and Moulines, "Comparison of Resampling Schemes for Particle
Filtering", 2005.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Final, Literal, TypeAlias

from search.select import Aggregate, aggregated

Resampling: TypeAlias = Literal["systematic", "stratified", "residual", "multinomial"]
"""How ancestors are drawn; the four differ in variance, not in the mean number of copies."""

Weighting: TypeAlias = Literal["odds_prefix", "raw_softmax", "incremental"]
"""What a particle's log-weight is.

`odds_prefix`: log-odds of the prefix's reward, read anew at every step; what the published codes
do. `raw_softmax`: the reward itself, as the paper's Algorithm 1 has it; nearly uniform.
`incremental`: the sum of log r over the steps since the last resampling, proper sequential Monte
Carlo, where no step counts twice.
"""

ODDS_FLOOR: Final = 1e-7
"""Rewards are clipped to [floor, 1 - floor]; the value of its_hub."""


def log_odds(reward: float, floor: float = ODDS_FLOOR) -> float:
    """The log-weight of a reward in 0..1: log(r / (1 - r)), finite at 0 and 1."""
    clipped = min(max(reward, floor), 1 - floor)
    return math.log(clipped) - math.log1p(-clipped)


def log_weight(steps: Sequence[float], how: Aggregate, floor: float = ODDS_FLOOR) -> float:
    """The log-weight of a prefix from the rewards of its steps, each in 0..1.

    A product is summed in logs, so that long prefixes keep their order where the product itself
    would fall below the floor.

    Args:
        steps: At least one.
        how: How the rewards become one.
        floor: See `ODDS_FLOOR`.
    """
    if how != "prod":
        return log_odds(aggregated(steps, how), floor)
    total = sum(math.log(min(max(one, floor), 1 - floor)) for one in steps)
    return total - math.log(-math.expm1(total))


def log_increment(reward: float, floor: float = ODDS_FLOOR) -> float:
    """What one step adds to the log-weight in sequential Monte Carlo: log r, of r in 0..1."""
    return math.log(min(max(reward, floor), 1.0))


def carried(log_weight: float, drawn_with: float, count: int) -> float:
    """The log-weight of a copy, so that all copies together count what their ancestor did.

    Expected copies are `count` times `drawn_with`; whatever the draw favoured is taken back here,
    so that sums over the particles stay unbiased under any tempering or look-ahead.

    Args:
        log_weight: Of the ancestor.
        drawn_with: Its probability in the draw, above 0.
        count: Particles drawn.
    """
    return log_weight - math.log(count * drawn_with)


def softmax(log_weights: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Weights that sum to 1, in the order given.

    Args:
        log_weights: Finite, at least one.
        temperature: Above 0; larger is flatter.
    """
    top = max(log_weights)
    masses = [math.exp((one - top) / temperature) for one in log_weights]
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def effective_size(weights: Sequence[float]) -> float:
    """How many equal particles these weights are worth: 1 / sum of squares, in 1..len."""
    return min(float(len(weights)), 1 / math.fsum(weight * weight for weight in weights))


def resample(
    weights: Sequence[float], count: int, how: Resampling, rng: random.Random
) -> list[int]:
    """Draw `count` ancestors; the mean number of copies of each is `count` times its weight.

    Args:
        weights: Non-negative, summing to 1.
        count: At least 0.
        how: The scheme.
        rng: The request's generator; the scheme decides how often it is asked.

    Returns:
        Positions in `weights`, with repeats.
    """
    return _SCHEMES[how](weights, count, rng)


def _systematic(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """One random offset for `count` equidistant positions."""
    offset = rng.random()
    return _at(weights, [(at + offset) / count for at in range(count)])


def _stratified(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """One random position in each of `count` equal strata."""
    return _at(weights, [(at + rng.random()) / count for at in range(count)])


def _multinomial(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """Independent draws."""
    return _at(weights, [rng.random() for _ in range(count)])


def _residual(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """The whole parts of the shares are certain; the remainders are drawn independently."""
    shares = [count * weight for weight in weights]
    # A share of 2.9999999999999996 is 3: rounding must not turn a certain copy into a draw.
    whole = [math.floor(share + 1e-9) for share in shares]
    certain = [at for at, copies in enumerate(whole) for _ in range(copies)]
    left = count - len(certain)
    if not left:
        return certain
    rest = [max(0.0, share - copies) for share, copies in zip(shares, whole, strict=True)]
    total = math.fsum(rest)
    return certain + _multinomial([one / total for one in rest], left, rng)


def _at(weights: Sequence[float], positions: Sequence[float]) -> list[int]:
    """For each position in [0, 1), the first index whose cumulated weight exceeds it."""
    cumulated = list(accumulate(weights))
    # A sum that ends at 0.9999999999999999, or a position rounded up to 1, must neither run out
    # of particles nor pick one of weight 0.
    last = max(at for at, weight in enumerate(weights) if weight > 0)
    return [min(last, bisect_right(cumulated, position)) for position in positions]


_SCHEMES: Final[Mapping[Resampling, Callable[[Sequence[float], int, random.Random], list[int]]]] = {
    "systematic": _systematic,
    "stratified": _stratified,
    "residual": _residual,
    "multinomial": _multinomial,
}
