"""How `engines.sglang_block_sampler` draws tokens, apart from SGLang."""

from __future__ import annotations

import hashlib
from typing import Final

import torch

SEED_DIGITS: Final = 16
"""Leading digits of a request's id that are its seed."""

_NEVER: Final = -float("inf")


def noise(rid: str, start: int) -> torch.Generator:
    """The numbers of one block of one request."""
    key = f"{rid[:SEED_DIGITS]}:{start}".encode()
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(seed)


def drawn(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N,) and the model's own probability of each, at temperature 1.

    Args:
        logits: (N, V).
        numbers: (N,) float64 in [0, 1).
        temperature: 0 takes the likeliest.
        mask_id: Never drawn.
    """
    wide = logits.double()
    wide[:, mask_id] = _NEVER
    plain = wide.softmax(dim=-1)
    if temperature > 0:
        mass = (wide / temperature).softmax(dim=-1).cumsum(dim=-1)
        # Scaled by the whole mass, so that rounding leaves no number without a token.
        tokens = torch.searchsorted(mass, (numbers * mass[:, -1])[:, None], right=True)
        tokens = tokens.clamp(max=wide.shape[-1] - 1)[:, 0]
    else:
        tokens = wide.argmax(dim=-1)
    return tokens, plain.gather(1, tokens[:, None])[:, 0]
