"""Tokens and how sure they are, from logits: float64, many rows with their own options at once.

Low precision in the noise of a draw lowers the temperature unnoticed, so everything after the
logits is float64. A token is drawn by inverse transform from one uniform number; the law is that of
LLaDA's ``argmax(exp(logits) / (-ln u) ** temperature)``.

Letters: M spots (positions of rows), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engines.diffusion.base import DenoiseJob
from engines.diffusion.kernels import Floats, Ints

MAX_NUMBERS: Final = 1 << 24
"""Logits shaped at a time: 128 MiB in float64, and a few times as much while they are sorted."""


@dataclass(frozen=True)
class Ask:
    """Spots of one row.

    Attributes:
        job: Whose options hold.
        uniforms: One number in [0, 1) per spot, (m,).
        is_fill: Take the likeliest token, whatever the temperature.
    """

    job: DenoiseJob
    uniforms: Floats
    is_fill: bool = False


@dataclass(frozen=True)
class Answer:
    """Of one row: token, log-probability (nats, temperature 1) and confidence per spot, (m,)."""

    ids: Ints
    logps: Floats
    confidence: Floats


def draw(logits: Tensor, asks: Sequence[Ask], mask_id: int) -> list[Answer]:
    """A token for every spot.

    Args:
        logits: (M, V) of all asks' spots, one ask after the other; any float dtype.
        asks: Whose spots they are.
        mask_id: Never drawn.
    """
    plain = logits.double()
    plain[:, mask_id] = -torch.inf
    plain = plain.log_softmax(-1)
    shaped = _shaped(plain, asks)
    ids = _drawn(shaped, asks)
    logps = plain.gather(1, ids.unsqueeze(1)).squeeze(1)
    confidence = _confidence(plain, shaped, ids, asks)
    columns = torch.stack([ids.double(), logps, confidence]).cpu().numpy()
    answers, start = [], 0
    for ask in asks:
        part = columns[:, start : start + len(ask.uniforms)]
        answers.append(Answer(part[0].astype(np.int64), part[1], part[2]))
        start += len(ask.uniforms)
    return answers


def _shaped(plain: Tensor, asks: Sequence[Ask]) -> Tensor:
    """Log-probabilities (M, V) after bans, temperature, top-p and top-k."""
    kernels = [ask.job.kernel for ask in asks]
    out = plain
    if any(kernel.ban_ids for kernel in kernels):
        out = plain.clone()
        start = 0
        for ask in asks:
            end = start + len(ask.uniforms)
            out[start:end, sorted(ask.job.kernel.ban_ids)] = -torch.inf
            start = end
    temperatures = _column([ask.job.temperature or 1.0 for ask in asks], asks, plain.device)
    out = (out / temperatures).log_softmax(-1)
    if any(kernel.top_p < 1 or kernel.top_k for kernel in kernels):
        top_p = _column([kernel.top_p for kernel in kernels], asks, plain.device)
        most = plain.shape[1]
        top_k = _column([kernel.top_k or most for kernel in kernels], asks, plain.device)
        out = _truncated(out, top_p, top_k)
    return out


def _truncated(logps: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Only the smallest set holding `top_p`, and of it the `top_k` likeliest; renormalised."""
    order = logps.sort(stable=True, dim=-1, descending=True)
    probs = order.values.exp()
    before = probs.cumsum(-1) - probs
    ranks = torch.arange(logps.shape[1], device=logps.device)
    keep = ((before < top_p) & (ranks < top_k)) | (ranks == 0)
    kept = order.values.masked_fill(~keep, -torch.inf)
    return torch.empty_like(logps).scatter_(1, order.indices, kept).log_softmax(-1)


def _drawn(shaped: Tensor, asks: Sequence[Ask]) -> Tensor:
    """Ids (M,): by each spot's uniform number, or the likeliest."""
    likeliest = shaped.argmax(-1)
    is_greedy = [ask.is_fill or ask.job.temperature == 0 for ask in asks]
    if all(is_greedy):
        return likeliest
    cdf = shaped.exp().cumsum(-1)
    uniforms = torch.from_numpy(np.concatenate([ask.uniforms for ask in asks])).to(shaped.device)
    target = uniforms.unsqueeze(1) * cdf[:, -1:]
    # A target within rounding of the sum must not fall behind the last token that can be drawn.
    last = shaped.shape[1] - 1 - (shaped.flip(-1) > -torch.inf).int().argmax(-1)
    drawn = torch.searchsorted(cdf, target, right=True).squeeze(1).minimum(last)
    return torch.where(_column(is_greedy, asks, shaped.device).squeeze(1).bool(), likeliest, drawn)


def _confidence(plain: Tensor, shaped: Tensor, ids: Tensor, asks: Sequence[Ask]) -> Tensor:
    """How sure each drawn token is, (M,), by its kernel's measure."""
    own = ids.unsqueeze(1)
    names = [ask.job.kernel.name for ask in asks]
    measures: dict[str, Callable[[], Tensor]] = {
        "low_confidence": lambda: plain.gather(1, own).squeeze(1).exp(),
        "topk_margin": lambda: _margin(shaped),
        "entropy": lambda: _negative_entropy(shaped),
    }
    out = shaped.gather(1, own).squeeze(1).exp()  # maskgit_plus; the others reveal all
    for name, measure in measures.items():
        if name in names:
            is_own = _column([one == name for one in names], asks, plain.device).squeeze(1).bool()
            out = torch.where(is_own, measure(), out)
    return out


def _margin(shaped: Tensor) -> Tensor:
    two = shaped.topk(2, dim=-1).values.exp()
    return two[:, 0] - two[:, 1]


def _negative_entropy(shaped: Tensor) -> Tensor:
    probs = shaped.exp()
    return (probs * (probs + 1e-10).log()).sum(-1)


def _column(values: Sequence[float], asks: Sequence[Ask], device: torch.device) -> Tensor:
    """Each ask's value at each of its spots, (M, 1) float64."""
    sizes = [len(ask.uniforms) for ask in asks]
    column = np.repeat(np.asarray(values, dtype=np.float64), sizes)
    return torch.from_numpy(column).unsqueeze(1).to(device)
