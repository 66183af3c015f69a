"""The likeliest next tokens, cut to what `next_logprobs` was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.base import NextTokens, TopLogps


def chosen_tops(
    row: TopLogps, ids: Sequence[int] | None, mass: float | None, top_k: int | None
) -> TopLogps | None:
    """What was asked for, from the likeliest tokens; None when more of them are needed."""
    if ids is not None:
        known = dict(row)
        if any(token not in known for token in ids):
            return None
        return tuple((token, known[token]) for token in ids)
    if mass is None:
        return row[:top_k]
    held = 0.0
    for at, (_, logp) in enumerate(row):
        held += math.exp(logp)
        if held >= mass:
            return row[: at + 1]
    return None


def listed(row: TopLogps) -> NextTokens:
    """Them, and the probability of all others."""
    held = math.fsum(math.exp(logp) for logp in dict(row).values())
    return NextTokens(
        ids=tuple(token for token, _ in row),
        logps=tuple(logp for _, logp in row),
        tail_mass=max(0.0, 1.0 - held),
    )
