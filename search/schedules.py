"""Temperature as a function of the position in the answer: exploratory annealed decoding.

Pure functions and values. The position is the number of the answer's tokens before the one to be
drawn, the prompt left out; engines count it from the response's start, so it goes on over steps,
forks and chunks. What this does not do: draw tokens, or measure how long answers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

_CODE_UNIT = 20
_CODE_GROWTH = 5
_CODE_CAP = 40_000


@dataclass(frozen=True)
class Annealed:
    """Hot at the start of an answer, cold at its end: max(1 + tau_max - exp(t / d), tau_min).

    Source: Yang et al., "Let it Calm: Exploratory Annealed Decoding for Verifiable Reinforcement
    Learning", arXiv 2510.05251, and the mode `negexp` of the authors' code.
    Differs: d is in tokens (the code's `decay_freq` is a twentieth of that, see
    `from_decay_freq`), does not grow with a training step, and t does not begin again with every
    request; exp is never taken of a position behind the floor, so that nothing overflows.

    Attributes:
        tau_max: Temperature that the curve begins with, at position 0.
        tau_min: The floor.
        decay_tokens: d: the larger, the slower it cools.
        warmup_tokens: Positions before this one have the temperature `base`.
        base: The request's own temperature.

    Raises:
        ValueError: A temperature or length out of bounds.
    """

    tau_max: float = 1.2
    tau_min: float = 0.1
    decay_tokens: float = 500.0
    warmup_tokens: int = 10
    base: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.tau_min <= self.tau_max < math.inf:
            raise ValueError(f"tau_min {self.tau_min} must be in (0, tau_max], {self.tau_max}")
        if not self.decay_tokens > 0 or self.warmup_tokens < 0 or self.base < 0:
            raise ValueError(
                f"decay_tokens {self.decay_tokens} must be above 0, warmup_tokens "
                f"{self.warmup_tokens} and base {self.base} at least 0"
            )

    @property
    def floor_at(self) -> float:
        """t*: the position where the floor is reached, the warm-up left out of account."""
        return self.decay_tokens * _reach(self.tau_max, self.tau_min)

    @property
    def one_at(self) -> float:
        """t1: the position where the curve crosses 1; below 0 where it begins under it."""
        return self.decay_tokens * math.log(self.tau_max)

    def temperature(self, position: int) -> float:
        """See `engines.base.Schedule`."""
        if position < self.warmup_tokens:
            return self.base
        if position >= self.floor_at:
            return self.tau_min
        return max(self.tau_min, self.tau_max - math.expm1(position / self.decay_tokens))

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        """At most `max_pieces` pieces: exact where they suffice, else equal drops of temperature.

        A piece of the curve has the middle of the temperatures that it stands for, so it is never
        further off than half a drop.

        Raises:
            ValueError: No piece is allowed.
        """
        if max_pieces < 1:
            raise ValueError(f"{max_pieces} pieces hold no schedule; at least one is needed")
        start = self.warmup_tokens
        floor = max(start, math.ceil(min(self.floor_at, 2.0**62)))
        head = [(0, self.base)] if start else []
        room = max_pieces - len(head) - 1  # for the curve between warm-up and floor
        if floor - start <= room:
            curve = [(at, self.temperature(at)) for at in range(start, floor)]
            return _merged([*head, *curve, (floor, self.tau_min)])
        if room < 1:  # the curve has no piece of its own: what is hot before the floor, as one
            middle = (self.temperature(start) + self.tau_min) / 2
            return [(0, middle), (floor, self.tau_min)][:max_pieces]
        return _merged([*head, *self._drops(start, floor, room), (floor, self.tau_min)])

    def _drops(self, start: int, floor: int, pieces: int) -> list[tuple[int, float]]:
        hottest = self.temperature(start)
        drop = (hottest - self.tau_min) / pieces
        levels = [hottest - drop * number for number in range(1, pieces)]
        cuts = [math.ceil(self.decay_tokens * _reach(self.tau_max, level)) for level in levels]
        bounds = sorted({start, *(min(max(cut, start), floor) for cut in cuts), floor})
        return [
            (first, (self.temperature(first) + self.temperature(end - 1)) / 2)
            for first, end in pairwise(bounds)
        ]

    def mean(self, num_tokens: int) -> float:
        """Mean temperature of the first `num_tokens` tokens: the constant to compare with."""
        return sum(map(self.temperature, range(num_tokens))) / num_tokens


@dataclass(frozen=True)
class Unsized:
    """An annealed schedule whose decay shall follow the length of the answers.

    Attributes:
        tau_max: As in `Annealed`.
        tau_min: As in `Annealed`.
        warmup_tokens: As in `Annealed`.
        base: As in `Annealed`.
        floor_ratio: Where the floor is reached, as a share of the median answer.
        pilot: Answers to look at.
    """

    tau_max: float = 1.2
    tau_min: float = 0.1
    warmup_tokens: int = 10
    base: float = 1.0
    floor_ratio: float = 1.0
    pilot: int = 4

    def __post_init__(self) -> None:
        self.sized([1])  # refuses what no schedule takes

    def sized(self, lengths: Sequence[int]) -> Annealed:
        """The schedule for answers of these lengths in tokens; there is at least one.

        Its decay is rounded to a tenth of a token, as it is reported, so that whoever sends the
        reported number gets this schedule again.
        """
        target = self.floor_ratio * max(1.0, median(lengths))
        decay = decay_for(target, self.tau_max, self.tau_min)
        return Annealed(
            self.tau_max,
            self.tau_min,
            max(0.1, round(decay, 1)),
            self.warmup_tokens,
            self.base,
        )


def decay_for(num_tokens: float, tau_max: float, tau_min: float) -> float:
    """The decay in tokens under which the floor is reached after `num_tokens` tokens.

    Without a drop from `tau_max` to `tau_min` every decay gives the same schedule.
    """
    return num_tokens / (_reach(tau_max, tau_min) or 1.0)


def from_decay_freq(decay_freq: float, step: int = 0) -> float:
    """The decay in tokens of the authors' sampler, whose `decay_freq` is a twentieth of it.

    Args:
        decay_freq: As in their configuration.
        step: Of the optimiser; 0 at inference.
    """
    return _CODE_UNIT * min(decay_freq + _CODE_GROWTH * step, _CODE_CAP)


def _reach(tau_max: float, tau_min: float) -> float:
    """ln(1 + tau_max - tau_min): decays until the floor."""
    return math.log1p(tau_max - tau_min)


def _merged(pieces: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The same function with no piece of no length and no two neighbours alike."""
    ends = [*(start for start, _ in pieces[1:]), math.inf]
    merged: list[tuple[int, float]] = []
    for (start, value), end in zip(pieces, ends, strict=True):
        if start < end and (not merged or merged[-1][1] != value):
            merged.append((start, value))
    return merged
