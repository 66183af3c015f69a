"""Weights to begin with that copy."""

from __future__ import annotations

import pytest
import torch

from models.training.copying import start_copying
from models.training.network import Llama, Shape


def _share_copied(network: Llama) -> float:
    """How often the likeliest next token of random text that repeats is the right one."""
    rng = torch.Generator().manual_seed(2)
    once = torch.randint(0, 400, (8, 40), generator=rng)
    ids = torch.cat([once, once], dim=1)
    with torch.inference_mode():
        said = network(ids[:, :-1]).argmax(-1)
    return float((said[:, 41:] == ids[:, 42:]).float().mean())


def test_what_was_there_before_is_copied_without_any_training() -> None:
    torch.manual_seed(1)
    network = Llama(
        Shape(
            400, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
    )
    before = _share_copied(network)
    start_copying(network)
    # by chance 1 in 400; half of it takes a working circuit
    assert before < 0.05
    assert _share_copied(network) > 0.5


def test_a_network_too_small_for_it_is_refused() -> None:
    network = Llama(Shape(40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="two layers"):
        start_copying(network)
