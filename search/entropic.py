"""Entropic annealing and look-ahead of particle filters: temperatures, horizon. Pure functions.

Source: Giannone et al., "Mitigating Premature Exploitation in Particle-based Monte Carlo for
Inference-Time Scaling", arXiv 2510.05825, with the formulas of its_hub 1.2.0.
Differs: `bisect` is ours; the horizon may be estimated; entropy is normalised for two particles
too; the paper's look-ahead weight is not public, the three forms here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal, TypeAlias

from search.particles import effective_size, softmax

Annealing: TypeAlias = Literal["ess", "entropy", "base", "bisect"]
"""How the temperature is found when the particles are too few in effect."""
Lookahead: TypeAlias = Literal["product", "successor", "mean"]
"""How a particle's log-weight and that of its successor become one."""

_HALVINGS: Final = 60


def normalised_entropy(weights: Sequence[float]) -> float:
    """Entropy over its maximum, in 0..1; 1 for a single particle."""
    if len(weights) < 2:
        return 1.0
    nats = -math.fsum(one * math.log(one) for one in weights if one > 0)
    return min(1.0, max(0.0, nats / math.log(len(weights))))


def temperature(
    log_weights: Sequence[float], progress: float, how: Annealing, target_ratio: float = 0.5
) -> float:
    """What to divide the log-weights by, at least 1.

    Args:
        log_weights: Finite, at least one.
        progress: Share of the way that is done, in 0..1.
        how: `ess`: (N / ESS)(1 - p). `entropy`: 1 / (H + (1 - H) p), H normalised. `base`: 2 - p.
            `bisect`: the smallest that brings ESS / N up to `target_ratio`.
        target_ratio: For `bisect`.
    """
    weights = softmax(log_weights)
    if how == "ess":
        return max(1.0, len(weights) / effective_size(weights) * (1 - progress))
    if how == "entropy":
        entropy = normalised_entropy(weights)
        return max(1.0, 1 / max(entropy + (1 - entropy) * progress, 1e-9))
    if how == "base":
        return max(1.0, 2 - progress)
    return _reaching(log_weights, target_ratio * len(weights))


def is_collapsing(
    log_weights: Sequence[float], progress: float, ess_threshold: float, early_phase: float
) -> bool:
    """Whether to anneal: effective share and progress both strictly below their bounds."""
    share = effective_size(softmax(log_weights)) / len(log_weights)
    return share < ess_threshold and progress < early_phase


def horizon(finished_depths: Sequence[int], max_depth: int) -> float:
    """Steps that a particle is expected to take: the median of those that finished."""
    return float(median(finished_depths)) if finished_depths else float(max_depth)


def modulated(log_weight: float, successor: float, how: Lookahead) -> float:
    """A particle's log-weight for the draw, from its own and its successor's."""
    if how == "product":
        return log_weight + successor
    return successor if how == "successor" else (log_weight + successor) / 2


def _reaching(log_weights: Sequence[float], size: float) -> float:
    """The smallest temperature, at least 1, with this effective size; it grows with the heat."""
    if effective_size(softmax(log_weights)) >= size:
        return 1.0
    low, high = 0.0, 1.0  # the inverse temperature: reached at low, not at high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        scaled = [middle * one for one in log_weights]
        if effective_size(softmax(scaled)) >= size:
            low = middle
        else:
            high = middle
    return 1 / max(low, 1e-12)
