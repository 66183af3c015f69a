"""How near a multifurcation reward model comes to its teacher on texts that have rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from reward_models.training.multifurcation import Multifurcation, predict, squared_errors
from reward_models.training.token_rewards import TokenRewards

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Measurement:
    """Over tokens that have a reward; intervals are 95 %, over texts, whose tokens hang together.

    Attributes:
        mse: Mean squared error.
        within_one: Share of predictions within ±1 of the reward.
        mean_only_mse: The variance of the rewards: what their mean as the only prediction has.
        num_rewards: Tokens.
        num_texts: Texts.
        mse_interval: Of `mse`.
        within_one_interval: Of `within_one`.
    """

    mse: float
    within_one: float
    mean_only_mse: float
    num_rewards: int
    num_texts: int
    mse_interval: Interval
    within_one_interval: Interval


def measure(network: Multifurcation, texts: Sequence[TokenRewards]) -> Measurement:
    """How near predictions are to rewards; all NaN without texts."""
    if not texts:
        nan = math.nan
        return Measurement(nan, nan, nan, 0, 0, (nan, nan), (nan, nan))
    errors = [
        squared_errors(torch.tensor(row), torch.tensor(text.rewards))
        for row, text in zip(predict(network, texts), texts, strict=True)
    ]
    within = [(one <= 1).float() for one in errors]
    rewards = torch.cat([torch.tensor(text.rewards) for text in texts])
    known = rewards[~rewards.isnan()]
    return Measurement(
        float(torch.cat(errors).mean()),
        float(torch.cat(within).mean()),
        float(known.var(correction=0)),
        len(known),
        len(texts),
        _interval(errors, math.inf),
        _interval(within, 1.0),
    )


def _interval(values: Sequence[Tensor], most: float) -> Interval:
    """Of the mean over all tokens, texts being drawn: the ratio estimator's, normal, in 0…most."""
    sums = torch.stack([one.sum() for one in values]).double()
    counts = torch.tensor([len(one) for one in values]).double()
    mean = float(sums.sum() / counts.sum())
    if len(values) < 2:
        return math.nan, math.nan
    spread = float((sums - mean * counts).std() / (len(values) ** 0.5 * counts.mean()))
    return max(0.0, mean - 1.96 * spread), min(most, mean + 1.96 * spread)
