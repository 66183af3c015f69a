"""Nearness by hand: tokens are what is counted, texts are what was drawn."""

from __future__ import annotations

import math

import pytest
import torch

from reward_models.training import nearness
from reward_models.training.nearness import measure
from reward_models.training.token_rewards import TokenRewards

NAN = math.nan
TEXTS = (
    TokenRewards("a", "validation", (1, 2, 3, 4), (NAN, 1.0, 2.0, 3.0)),
    TokenRewards("b", "validation", (1, 2), (NAN, -2.0)),
)
PREDICTED = [(NAN, 1.5, 4.0, 3.0), (NAN, -3.0)]


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "predict", lambda network, texts: PREDICTED)
    found = measure(torch.nn.Module(), TEXTS)  # type: ignore[arg-type]
    assert (found.num_rewards, found.num_texts) == (4, 2)
    assert found.mse == pytest.approx((0.25 + 4 + 0 + 1) / 4)
    assert found.within_one == pytest.approx(3 / 4)  # exactly 1 away is within
    assert found.mean_only_mse == pytest.approx(3.5)  # the variance of 1, 2, 3, -2
    low, high = found.within_one_interval
    assert 0 <= low < 0.75 < high <= 1


def test_one_text_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "predict", lambda network, texts: PREDICTED[:1])
    found = measure(torch.nn.Module(), TEXTS[:1])  # type: ignore[arg-type]
    assert all(map(math.isnan, found.mse_interval))
    nothing = measure(torch.nn.Module(), [])  # type: ignore[arg-type]
    assert math.isnan(nothing.mse)
