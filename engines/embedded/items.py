"""What the engine hands out, made of what the worker left: deltas, and rows of next tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from engines.base import Delta, NextTokens
from engines.embedded.sequence import Branch

_FIRST_LISTED = 64
"""Tokens that a nucleus is first looked for among."""
_SORTED_WHOLE = 4096
"""A larger vocabulary takes longer to sort than its likeliest tokens take to find."""


def new_delta(branch: Branch) -> Delta | None:
    """What a branch said since the last call, as far as it is certain; None where nothing is."""
    text, count = branch.tracker.take(final=branch.finish is not None)
    if not text and not count:
        return None
    start = branch.delivered_tokens
    end = branch.delivered_tokens = start + count
    first = branch.start
    return Delta(
        branch.index,
        tuple(branch.tokens[first + start : first + end]),
        text,
        tuple(branch.logps[start:end]),
        tuple(branch.top_logps[start:end]) if branch.how.logprobs else None,
    )


def next_tokens(
    row: torch.Tensor, ids: Sequence[int] | None, mass: float | None, top_k: int | None
) -> NextTokens:
    """One row of log-probabilities (V,) cut to what was asked for."""
    if ids is not None:
        wanted = tuple(ids)
        values = row[torch.tensor(wanted, device=row.device)].tolist() if wanted else []
        distinct = row[torch.tensor(sorted(set(wanted)), device=row.device)] if wanted else row[:0]
        return NextTokens(wanted, tuple(values), max(0.0, 1.0 - float(distinct.exp().sum())))
    if mass is not None:
        return _nucleus(row, mass)
    found, logps = _likeliest(row, top_k or len(row))
    return NextTokens(
        tuple(found.tolist()), tuple(logps.tolist()), max(0.0, 1.0 - float(logps.exp().sum()))
    )


def _nucleus(row: torch.Tensor, mass: float) -> NextTokens:
    """The likeliest tokens in front of which there is less than `mass`, at least one."""
    size = _FIRST_LISTED if mass < 1.0 else len(row)
    while True:
        found, tensor = _likeliest(row, size)
        logps, count, held = tensor.tolist(), 0, 0.0
        # Sums of float32 come to 1 before all is listed: who asks for all of it gets every token.
        while count < len(logps) and (held < mass or not count or mass >= 1.0):
            held += math.exp(logps[count])
            count += 1
        if held >= mass or size >= len(row):
            ids = tuple(found[:count].tolist())
            tail = max(0.0, 1.0 - held) if count < len(row) else 0.0
            return NextTokens(ids, tuple(logps[:count]), tail)
        size *= 8


def _likeliest(row: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values of the `count` largest, largest first, ties by id; all that there are."""
    if count >= len(row) or len(row) <= _SORTED_WHOLE:
        whole = row.sort(descending=True, stable=True)
        return whole.indices[:count], whole.values[:count]
    least = row.topk(count).values[-1]
    ids = (row >= least).nonzero().squeeze(1)
    order = row[ids].sort(descending=True, stable=True)
    return ids[order.indices[:count]], order.values[:count]
