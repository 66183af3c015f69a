"""How sure a vote is before all of it is in. Pure functions, floats only.

Samples of one prompt are draws from a categorical distribution whose probabilities nobody knows.
With a flat prior over them, counts make a Dirichlet posterior, and the probability that the leading
answer is also the likeliest one can be read off it. `is_certain` needs no posterior: it says when
the votes still to come could not change the winner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from scipy.special import betainc, expit, gammainc, gammaincinv, logit

StopRule: TypeAlias = Literal["beta", "dirichlet"]
"""Which posterior: of the two leading answers alone, or of all answers seen."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)
_LEAST: Final = 1e-9  # keeps log-odds finite
_MOST_TRUST: Final = 0.99  # of one judgement: a judge that says 1 is not certainty


def beta_sureness(first: float, second: float) -> float:
    """P(p₁ > p₂ | counts) of the two leading answers: P(X > 1/2) under Beta(first + 1, second + 1).

    Source: Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency for Efficient
    Reasoning and Coding with LLMs", arXiv 2305.11860, §3.2, the Beta criterion.
    Differs: the regularised incomplete beta function instead of numerical integration.

    Args:
        first: Votes of the leading answer, at least 0; weights need not be whole.
        second: Votes of the runner-up.
    """
    return float(betainc(second + 1, first + 1, 0.5))


def dirichlet_sureness(counts: Sequence[float]) -> float:
    """P(p₁ > every other p | counts), under Dirichlet(counts + 1) over the answers seen.

    Source: arXiv 2305.11860, §3.2, the Dirichlet criterion.
    Differs: one integral over gamma variables, P(G₁ > max Gⱼ) with Gⱼ ~ Gamma(countⱼ + 1), by
    Gauss-Legendre over the quantiles of G₁, instead of a Monte-Carlo integral over the simplex of
    the five leading answers.

    Args:
        counts: Votes of each answer, the leading one first.
    """
    quantiles = (_NODES + 1) / 2
    level = gammaincinv(counts[0] + 1, quantiles)
    others = [gammainc(count + 1, level) for count in counts[1:]]
    return float(np.dot(_WEIGHTS, np.prod(others, axis=0)) / 2) if others else 1.0


def sureness(counts: Sequence[float], rule: StopRule = "beta") -> float:
    """The probability that the leading answer is the likeliest; 0 without votes.

    Args:
        counts: Votes of each answer, largest first.
        rule: `beta` compares the leading two; `dirichlet` the leading one with all others, which
            is a little less sure once there are three. Of one answer alone both say
            P(X > 1/2) under Beta(count + 1, 1).
    """
    if not counts or counts[0] <= 0:
        return 0.0
    if rule == "beta" or len(counts) < 3:
        return beta_sureness(counts[0], counts[1] if len(counts) > 1 else 0)
    return dirichlet_sureness(counts)


def is_certain(counts: Sequence[float], left: int) -> bool:
    """Whether `left` more votes of 1 each, all for one other answer, could not even draw level."""
    if not counts:
        return False
    return counts[0] - (counts[1] if len(counts) > 1 else 0) > left


def is_decided(counts: Sequence[float], left: int, threshold: float, rule: StopRule) -> bool:
    """Whether the vote may stop: it is certain, or sure to `threshold`; of 1, only certain."""
    return is_certain(counts, left) or (threshold < 1 and sureness(counts, rule) >= threshold)


def fewest_to_decide(counts: Sequence[float], left: int, threshold: float, rule: StopRule) -> int:
    """The fewest further votes after which the vote might stop; at most `left`.

    That is when all of them go to the leading answer. Drawing that many at once costs no more than
    drawing them one by one.

    Args:
        counts: Votes of each answer, largest first.
        left: Votes that can still come.
        threshold: As in `is_decided`.
        rule: As in `is_decided`.
    """
    first, *others = counts or (0,)
    for more in range(1, left):
        if is_decided([first + more, *others], left - more, threshold, rule):
            return more
    return left


def with_judgement(sure: float, value: float) -> float:
    """`sure` and a judge's value of the answer, a probability each, as independent evidence.

    Their log-odds add up: a value of 1/2 changes nothing.
    """
    trusted = min(max(value, 1 - _MOST_TRUST), _MOST_TRUST)
    bounded = min(max(sure, _LEAST), 1 - _LEAST)
    return float(expit(logit(bounded) + logit(trusted)))
