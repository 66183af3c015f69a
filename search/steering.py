"""Potentials of Feynman-Kac steering, in log space. Pure functions.

A particle is a partly revealed text. At a resampling step the reward of what it may become is
estimated from texts drawn in one shot, and a potential of these estimates is its weight.

Source: Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion
Models", arXiv 2501.06848, and its published code.
Differs: the history of `max` begins at minus infinity. Where it begins at 0, as in the code, and
rewards are log-probabilities (never above 0), every potential is the same and the method silently
becomes plain sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Potential: TypeAlias = Literal["diff", "max", "rt"]
"""`diff`: what the estimate gained since the last one. `max`: the largest estimate so far. `rt`:
the estimate itself."""


@dataclass(frozen=True)
class Steered:
    """What a particle's potentials came from.

    Attributes:
        last: The last estimate; 0 before the first, which shifts all weights alike.
        highest: The largest estimate; minus infinity before the first.
        log_product: Sum of the log-potentials until now.
    """

    last: float = 0.0
    highest: float = -math.inf
    log_product: float = 0.0


def steer(
    before: Steered, estimate: float, sharpness: float, how: Potential
) -> tuple[float, Steered]:
    """The log-potential of an estimate of the reward, and the history with it.

    Args:
        before: The history.
        estimate: Finite.
        sharpness: λ, above 0 and finite.
        how: The potential.
    """
    highest = max(before.highest, estimate)
    log_potential = (
        sharpness
        * {
            "diff": estimate - before.last,
            "max": highest,
            "rt": estimate,
        }[how]
    )
    return log_potential, Steered(estimate, highest, before.log_product + log_potential)


def finish(before: Steered, reward: float, sharpness: float) -> float:
    """The last log-potential: all of them together weigh a text with exp(λ · its reward)."""
    return sharpness * reward - before.log_product
