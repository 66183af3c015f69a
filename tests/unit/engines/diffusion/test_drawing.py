"""Tokens and confidence: laws in float64, options of each row, and the samplers' own formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.diffusion.base import DenoiseJob, Kernel
from engines.diffusion.drawing import Ask, draw

MASK = 4
LOGITS = [1.0, 0.0, -1.0, 2.0, 50.0]  # the mask's own is the highest, and never drawn


def job(temperature: float = 1.0, **options: object) -> DenoiseJob:
    kernel = replace(Kernel("low_confidence", steps=1), **options)  # type: ignore[arg-type]
    return DenoiseJob((MASK,), (False,), 0, 1, 0, temperature, kernel)


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([LOGITS] * count, dtype=dtype)


def grid(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def law(temperature: float = 1.0) -> np.ndarray:
    weights = np.exp(np.array(LOGITS[:4]) / temperature)
    return np.append(weights / weights.sum(), 0.0)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_evenly_spread_numbers_give_the_law(temperature: float) -> None:
    [answer] = draw(rows(1000), [Ask(job(temperature), grid(1000))], MASK)
    shares = np.bincount(answer.ids, minlength=5) / 1000
    assert np.abs(shares - law(temperature)).max() <= 0.002
    assert np.allclose(
        answer.logps, np.log(law()[answer.ids])
    )  # at temperature 1, whatever was drawn


def test_the_law_is_that_of_gumbel_noise() -> None:
    """LLaDA's draw, exp(logits) / (-ln u) ** temperature, 40,000 times; 5 deviations."""
    rng = np.random.default_rng(0)
    noise = -np.log(rng.random((40_000, 4)))
    drawn = (np.exp(np.array(LOGITS[:4])) / noise**0.7).argmax(1)
    shares = np.bincount(drawn, minlength=5) / 40_000
    expected = law(0.7)
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 40_000))
    [answer] = draw(rows(4000), [Ask(job(0.7), grid(4000))], MASK)
    ours = np.bincount(answer.ids, minlength=5) / 4000
    assert np.abs(ours - expected).max() <= 0.001


def test_rare_tokens_stay_as_rare_as_they_are() -> None:
    """A probability of e^-20 is drawn by the last number of the grid's end only, in float64."""
    logits = torch.tensor([[0.0, -20.0, -60.0, -60.0, 9.0]] * 3)
    numbers = np.array([0.5, 1 - 1.5e-9, 1 - 1e-16])
    [answer] = draw(logits, [Ask(job(), numbers)], MASK)
    assert answer.ids.tolist() == [0, 1, 1]


def test_zero_temperature_and_fills_take_the_likeliest() -> None:
    asks = [Ask(job(0.0), grid(3)), Ask(job(1.0), grid(3), is_fill=True)]
    for answer in draw(rows(6), asks, MASK):
        assert answer.ids.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {0, 3}),
        ({"top_p": 0.6}, {3}),
        ({"top_p": 0.7}, {0, 3}),
        ({"top_p": 1e-9}, {3}),
        ({"top_p": 0.999, "top_k": 1}, {3}),
        ({"ban_ids": frozenset({3})}, {0, 1, 2}),
        ({"ban_ids": frozenset({0, 3}), "top_k": 1}, {1}),
    ],
)
def test_truncation_keeps_these(options: dict[str, object], kept: set[int]) -> None:
    [answer] = draw(rows(2000), [Ask(job(1.0, **options), grid(2000))], MASK)
    assert set(answer.ids.tolist()) == kept
    weights = law()
    inside = np.array(sorted(kept))
    expected = weights[inside] / weights[inside].sum()
    shares = np.bincount(answer.ids, minlength=5)[inside] / 2000
    assert np.abs(shares - expected).max() <= 0.002


def test_each_row_has_its_own_options() -> None:
    asks = [
        Ask(job(0.0), grid(2)),
        Ask(job(1.0, top_k=1), grid(3)),
        Ask(job(1.0, ban_ids=frozenset({3})), grid(4)),
        Ask(job(1.0), grid(5)),
    ]
    together = draw(rows(14), asks, MASK)
    for ask, answer in zip(asks, together, strict=True):
        [alone] = draw(rows(len(ask.uniforms)), [ask], MASK)
        assert alone.ids.tolist() == answer.ids.tolist()
        assert np.array_equal(alone.logps, answer.logps)
        assert np.array_equal(alone.confidence, answer.confidence)


def test_confidence_is_the_samplers_own() -> None:
    """LLaDA's is untempered; Dream's three read the tempered, truncated distribution."""
    tempered = law(0.5)
    cut = np.where(tempered >= np.sort(tempered)[-2], tempered, 0)
    cut /= cut.sum()
    expected = {
        "low_confidence": lambda ids: law()[ids],
        "maskgit_plus": lambda ids: cut[ids],
        "topk_margin": lambda ids: np.full(len(ids), np.sort(cut)[-1] - np.sort(cut)[-2]),
        "entropy": lambda ids: np.full(
            len(ids), sum(p * math.log(p + 1e-10) for p in cut[cut > 0])
        ),
    }
    asks = [Ask(job(0.5, name=name, top_k=2), grid(7)) for name in expected]
    answers = draw(rows(28), asks, MASK)
    for (name, formula), answer in zip(expected.items(), answers, strict=True):
        assert np.allclose(answer.confidence, formula(answer.ids), atol=1e-9), name


def test_low_precision_logits_are_drawn_in_float64() -> None:
    [answer] = draw(rows(1000, torch.bfloat16), [Ask(job(), grid(1000))], MASK)
    shares = np.bincount(answer.ids, minlength=5) / 1000
    assert np.abs(shares - law()).max() <= 0.002
