"""A judge that is too sure of itself early in an answer: what entropic annealing is made for.

At step t the log-odds of a reward r become

    k_t * logit(r) + s_t * z,   k_t = 1 + 3 * max(0, 1 - t / 4),   s_t = 2 * max(0, 1 - t / 4)

with z standard normal, fixed by a seed and the text up to that step. From the fourth step on the
rewards are the judge's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from scipy.special import expit, logit, ndtri

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, RewardInfo, RewardModel, RewardStats, Score

_STEPS = 4
_SHARPER = 3.0
_NOISE = 2.0
_FLOOR = 1e-7


class Overconfident:
    """A process judge of values in 0…1 whose early values are distorted.

    Args:
        judge: Whose values; not closed with this one.
        seed: Of the noise.
    """

    def __init__(self, judge: RewardModel, seed: int) -> None:
        self._judge = judge
        self._seed = seed

    @property
    def info(self) -> RewardInfo:
        """As the judge's own."""
        return self._judge.info

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`."""
        return await self._judge.open(messages, tenant=tenant)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """The judge's scores, distorted."""
        scores = await self._judge.score(batch)
        return [self._distorted(one, score) for one, score in zip(batch, scores, strict=True)]

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`."""
        return self._judge.stats()

    async def aclose(self) -> None:
        """Nothing: the judge belongs to whoever opened it."""

    def _distorted(self, candidate: Candidate, score: Score) -> Score:
        steps = tuple(
            distorted(value, number, self._seed, prefix)
            for number, (value, prefix) in enumerate(
                zip(score.steps, accumulate(candidate.steps), strict=True), start=1
            )
        )
        return replace(score, value=steps[-1] if steps else score.value, steps=steps)


def distorted(value: float, step: int, seed: int, prefix: str) -> float:
    """A reward of 0…1 as an over-confident judge would give it at this step, counted from 1."""
    early = max(0.0, 1 - step / _STEPS)
    if not early or math.isnan(value):
        return value
    odds = float(logit(min(max(value, _FLOOR), 1 - _FLOOR)))
    return float(expit((1 + _SHARPER * early) * odds + _NOISE * early * _normal(seed, prefix)))


def _normal(seed: int, prefix: str) -> float:
    """A standard normal number that seed and text decide."""
    digest = hashlib.blake2b(f"{seed}:{prefix}".encode(), digest_size=8).digest()
    return float(ndtri((int.from_bytes(digest, "big") + 0.5) / 2**64))
