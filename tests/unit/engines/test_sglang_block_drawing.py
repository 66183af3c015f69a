"""Draws inside SGLang: their law, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from engines.sglang_block_drawing import drawn, noise

LOGITS = torch.tensor([1.0, 0.0, -1.0, 3.0, 2.0])
MASK = 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_softmax_without_the_mask(temperature: float) -> None:
    """Chi-square with 3 degrees of freedom, 20,000 draws; fails by chance 1 time in 10,000."""
    count = 20_000
    numbers = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, sure = drawn(LOGITS.repeat(count, 1), numbers, temperature, MASK)
    kept = torch.tensor([0, 1, 2, 4])
    expected = (LOGITS[kept].double() / temperature).softmax(0) * count
    seen = torch.bincount(tokens, minlength=5)
    assert seen[MASK] == 0
    assert float(((seen[kept] - expected) ** 2 / expected).sum()) < 21.1
    plain = LOGITS[kept].double().softmax(0)
    assert torch.allclose(sure[tokens == 4], plain[3])


def test_temperature_zero_takes_the_likeliest_but_the_mask() -> None:
    numbers = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    tokens, _ = drawn(LOGITS.repeat(3, 1), numbers, 0.0, MASK)
    assert tokens.tolist() == [4, 4, 4]


def test_the_last_number_has_a_token() -> None:
    number = torch.tensor([1 - 2**-53], dtype=torch.float64)
    tokens, _ = drawn(torch.zeros(1, 7), number, 1.0, 6)
    assert tokens.tolist() == [5]


def test_noise_is_of_seed_and_block() -> None:
    def numbers(rid: str, start: int) -> list[float]:
        return torch.rand(4, generator=noise(rid, start)).tolist()

    first = numbers("0" * 15 + "1" + "abc", 32)
    assert first == numbers("0" * 15 + "1" + "else", 32)
    assert first != numbers("0" * 15 + "2" + "abc", 32)
    assert first != numbers("0" * 15 + "1" + "abc", 64)
