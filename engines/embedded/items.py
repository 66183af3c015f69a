"""What the engine hands out, made of what the worker left: deltas, and rows of next tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.base import Delta, NextTokens, TokenIds
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
    rows: torch.Tensor, ids: Sequence[int] | None, mass: float | None, top_k: int | None
) -> list[NextTokens]:
    """Rows of log-probabilities (N, V) cut to what was asked for."""
    if ids is not None:
        return _of_ids(rows, tuple(ids))
    if mass is not None:
        return _nuclei(rows, mass, _FIRST_LISTED if mass < 1.0 else rows.shape[1])
    found, logps = _likeliest(rows, top_k or rows.shape[1])
    tails = (1.0 - logps.exp().sum(1)).clamp_min(0.0)
    listed = zip(found.tolist(), logps.tolist(), tails.tolist(), strict=True)
    return [NextTokens(tuple(one), tuple(values), tail) for one, values, tail in listed]


def _of_ids(rows: torch.Tensor, ids: TokenIds) -> list[NextTokens]:
    """These tokens of every row, with what is beside them."""
    wanted = torch.tensor(ids, dtype=torch.long, device=rows.device)
    values = rows.index_select(1, wanted).tolist()
    distinct = torch.tensor(sorted(set(ids)), dtype=torch.long, device=rows.device)
    tails = (1.0 - rows.index_select(1, distinct).exp().sum(1)).clamp_min(0.0).tolist()
    return [NextTokens(ids, tuple(one), tail) for one, tail in zip(values, tails, strict=True)]


def _nuclei(rows: torch.Tensor, mass: float, size: int) -> list[NextTokens]:
    """Of each row the likeliest tokens in front of which there is less than `mass`, at least one.

    Args:
        rows: (N, V) log-probabilities.
        mass: In 0..1.
        size: Tokens to look among; where they do not hold the mass, more are looked at.
    """
    found, logps = _likeliest(rows, size)
    listed = found.shape[1]
    sums = logps.double().exp().cumsum(1)
    # Sums of float32 come to 1 before all is listed: who asks for all of it gets every token.
    before = (sums < mass).sum(1) if mass < 1.0 else sums.new_full((len(sums),), listed).long()
    counts = before.add_(1).clamp_max_(listed)
    held = sums.gather(1, counts.unsqueeze(1) - 1).squeeze(1).tolist()
    ends, longest = counts.tolist(), int(counts.max())
    ids, values = found[:, :longest].tolist(), logps[:, :longest].tolist()
    is_all = listed == rows.shape[1]
    short = [] if is_all else [at for at, one in enumerate(held) if one < mass]
    deeper = iter(_nuclei(rows[short], mass, size * 8) if short else ())
    return [
        next(deeper)
        if not is_all and one < mass
        else NextTokens(
            tuple(ids[at][:end]),
            tuple(values[at][:end]),
            max(0.0, 1.0 - one) if end < rows.shape[1] else 0.0,
        )
        for at, (end, one) in enumerate(zip(ends, held, strict=True))
    ]


def _likeliest(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values of each row's `count` largest, largest first, ties by id; at most all."""
    size = rows.shape[1]
    if size <= _SORTED_WHOLE or count >= size:
        whole = rows.sort(dim=1, descending=True, stable=True)
        return whole.indices[:, :count], whole.values[:, :count]
    ids, values = zip(*(_likeliest_of(row, count) for row in rows), strict=True)
    return torch.stack(ids), torch.stack(values)


def _likeliest_of(row: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`_likeliest` of one row (V,) that takes longer to sort than these take to find."""
    least = row.topk(count).values[-1]
    ids = (row >= least).nonzero().squeeze(1)
    order = row[ids].sort(descending=True, stable=True)
    return ids[order.indices[:count]], order.values[:count]
