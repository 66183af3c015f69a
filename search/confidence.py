"""How confident a model was of its own answer, from the log-probabilities it gave. Pure functions.

The confidence of a token is large where the distribution was peaked: minus the mean log-probability
of its likeliest tokens, in nats. Everything is rounded to 1e-5, because batched matrix products
differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.base import TopLogps

Measure: TypeAlias = Literal["lowest", "bottom", "tail", "mean"]
"""Which part of an answer its confidence is read from."""

_ROUNDING: Final = 5
_FLOOR: Final = -50.0  # nats: less likely than that is the arithmetic's, not the model's opinion
_BOTTOM_RATIO: Final = 0.1
_SHORTEST_WINDOW, _LONGEST_WINDOW = 16, 2048
_WINDOWS: Final = 8


def token_confidences(tops: Sequence[TopLogps], alternatives: int) -> list[float]:
    """The confidence of every token: minus the mean log-probability of its likeliest ones.

    Args:
        tops: Alternatives of every token, likeliest first.
        alternatives: How many of them to read, at least 1.
    """
    listed = [[max(logp, _FLOOR) for _, logp in row[:alternatives]] for row in tops]
    return [-sum(row) / len(row) for row in listed if row]


def group_confidences(confidences: Sequence[float], window: int) -> npt.NDArray[np.float64]:
    """Means over every `window` consecutive tokens; of fewer tokens, one mean of all.

    Args:
        confidences: One per token.
        window: Tokens of a group, at least 1.
    """
    if not len(confidences):
        return np.empty(0)
    sums = np.concatenate([[0.0], np.cumsum(confidences)])
    size = min(window, len(confidences))
    means: npt.NDArray[np.float64] = (sums[size:] - sums[:-size]) / size
    return means.round(_ROUNDING)


def confidence_of(confidences: Sequence[float], window: int, measure: Measure) -> float:
    """One number for an answer; NaN without tokens.

    Source: Fu et al., "Deep Think with Confidence", arXiv 2508.15260, §3.1 and its code: the lowest
    group, the mean of the lowest tenth of the groups, the last `window` tokens, or all of them.

    Args:
        confidences: One per token.
        window: Tokens of a group.
        measure: Which part counts.
    """
    if not len(confidences):
        return float("nan")
    if measure == "mean":
        return round(float(np.mean(confidences)), _ROUNDING)
    if measure == "tail":
        return round(float(np.mean(confidences[-window:])), _ROUNDING)
    groups = np.sort(group_confidences(confidences, window))
    lowest = max(1, int(len(groups) * _BOTTOM_RATIO)) if measure == "bottom" else 1
    return round(float(np.mean(groups[:lowest])), _ROUNDING)


def bar_of(values: Sequence[float], keep_ratio: float) -> float:
    """What the most confident `keep_ratio` of `values` reach, at least one of them.

    Args:
        values: Finite, at least one.
        keep_ratio: η of the paper, in (0, 1].
    """
    return round(float(np.percentile(values, 100 * (1 - keep_ratio))), _ROUNDING)


def window_for(lengths: Sequence[int]) -> int:
    """The window where nobody chose one: an eighth of the median length, from 16 to 2048 tokens.

    Source: ours. The paper's 2048 tokens suit traces of 16 thousand tokens and longer; of ordinary
    answers such a window would be all.
    """
    eighth = int(median(lengths)) // _WINDOWS if lengths else 0
    return min(max(eighth, _SHORTEST_WINDOW), _LONGEST_WINDOW)
