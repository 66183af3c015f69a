"""When requests arrive, decided before the first is sent: an open loop.

All of it is pure: the same arguments give the same times. Times are seconds from the run's start,
in rising order. Nothing here waits, and nothing here knows what is sent.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Final

KINDS: Final = ("constant", "poisson", "gamma")
MAX_REQUESTS: Final = 1_000_000
"""More arrivals than this are a mistake in the rate or the duration."""


class ArrivalsError(ValueError):
    """A rate, duration or number of requests that gives no usable schedule."""


def constant(rate: float) -> Iterator[float]:
    """Evenly spaced from 0, `rate` a second."""
    return (index / rate for index in itertools.count())


def gamma(rate: float, shape: float, seed: int) -> Iterator[float]:
    """Independent gamma gaps of mean 1 / `rate`.

    Their coefficient of variation is 1 / sqrt(`shape`): below 1 the arrivals come in bursts, at 1
    they are Poisson, and the larger it is the closer they are to `constant`.
    """
    rng = random.Random(seed)
    scale_s = 1 / (rate * shape)
    return itertools.accumulate(rng.gammavariate(shape, scale_s) for _ in itertools.count())


def poisson(rate: float, seed: int) -> Iterator[float]:
    """A Poisson process: independent users, none waiting for another."""
    return gamma(rate, 1.0, seed)


def schedule(
    kind: str,
    rate: float,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    requests: int | None = None,
    shape: float = 0.25,
) -> list[float]:
    """All arrival times of one run.

    Args:
        kind: One of KINDS.
        rate: Mean arrivals a second.
        seed: Of the random gaps.
        duration_s: Arrivals before this time only.
        requests: At most so many.
        shape: Of the gamma gaps, for kind `gamma`.

    Raises:
        ArrivalsError: An unknown kind, a number that is not above 0, neither bound given, or more
            than MAX_REQUESTS arrivals.
    """
    if kind not in KINDS:
        raise ArrivalsError(f"arrivals {kind!r} are not known; there are {', '.join(KINDS)}")
    for name, number in (("rate", rate), ("shape", shape), ("duration_s", duration_s)):
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise ArrivalsError(f"{name} is {number}; it must be finite and above 0")
    if duration_s is None and requests is None:
        raise ArrivalsError("give a duration or a number of requests: a run must end by itself")
    if requests is not None and not 0 < requests <= MAX_REQUESTS:
        raise ArrivalsError(f"requests is {requests}; it must be in 1..{MAX_REQUESTS}")
    times = {
        "constant": lambda: constant(rate),
        "poisson": lambda: poisson(rate, seed),
        "gamma": lambda: gamma(rate, shape, seed),
    }[kind]()
    end_s = math.inf if duration_s is None else duration_s
    bounded = itertools.takewhile(lambda time_s: time_s < end_s, times)
    drawn = list(itertools.islice(bounded, requests or MAX_REQUESTS + 1))
    if len(drawn) > MAX_REQUESTS:
        raise ArrivalsError(
            f"more than {MAX_REQUESTS} arrivals in {duration_s} s at {rate} a second: lower one"
        )
    return drawn
