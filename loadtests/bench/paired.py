"""Differences between contenders that did the same problems: 95 % intervals by bootstrap.

Problems are resampled with all that every contender did on them, so what makes a problem easy or
hard for everybody cancels out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from models.evaluate import Measured

Column: TypeAlias = npt.NDArray[np.float64]

_RESAMPLES: Final = 4000
_BATCH: Final = 200


def mean(one: Column, seed: int = 0) -> Measured:
    """The mean of a column."""
    return _measured((one,), lambda a, axis: a.mean(axis), seed)


def difference(one: Column, other: Column, seed: int = 0) -> Measured:
    """Mean of `one` minus mean of `other`."""
    return _measured((one, other), lambda a, b, axis: a.mean(axis) - b.mean(axis), seed)


def quotient(one: Column, other: Column, seed: int = 0) -> Measured:
    """Mean of `one` over mean of `other`, which is above 0."""
    return _measured((one, other), lambda a, b, axis: a.mean(axis) / b.mean(axis), seed)


def relative_gain(one: Column, other: Column, seed: int = 0) -> Measured:
    """How much the mean of `one` is above that of `other`, as a share of the latter."""
    found = quotient(one, other, seed)
    return Measured(found.value - 1, found.n, found.low - 1, found.high - 1)


def _measured(columns: tuple[Column, ...], statistic: Callable[..., Any], seed: int) -> Measured:
    """The statistic of the columns; where nothing varies, the interval is the point."""
    value = float(statistic(*columns, axis=-1))
    count = len(columns[0])
    if count < 2 or all(np.ptp(column) == 0 for column in columns):
        return Measured(value, count, value, value)
    found = bootstrap(
        columns,
        statistic,
        paired=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Measured(value, count, float(found.low), float(found.high))
