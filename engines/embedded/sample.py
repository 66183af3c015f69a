"""Drawing tokens from logits, a whole batch at once.

Every draw uses one uniform number that depends on the branch's seed and the position in its answer
and on nothing else, so neither the batch around a branch nor the pace of the scheduler changes what
it says.

Letters: B branches, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from engines.base import TopLogps
from engines.embedded.sequence import Branch

_AHEAD: Final = 32
"""Draws whose uniform numbers are made at a time."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(seed: int, number: int) -> int:
    """A 64-bit seed for child `number` of a stream.

    Source: SplitMix64, Steele, Lea and Flood 2014; the function of `uniforms`, for one value.
    """
    z = (seed + _GOLDEN * (number + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniforms(
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per (seed, position), float64; arrays that broadcast."""
    z = seeds + np.uint64(_GOLDEN) * (positions + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    unit: npt.NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return unit


@dataclass(frozen=True)
class Draw:
    """What a step drew: ids and their log-probabilities (nats, temperature 1, nothing masked)."""

    ids: list[int]
    logps: list[float]
    tops: list[TopLogps] | None


class Sampler:
    """The options of one batch of branches, as tensors. Each of them gains a token at every draw.

    Args:
        branches: In batch order.
        device: Of the logits.
    """

    def __init__(self, branches: Seq[Branch], device: torch.device) -> None:
        self._branches = branches
        self._device = device
        hows = [branch.how for branch in branches]
        self._seeds = np.array([branch.seed for branch in branches], dtype=np.uint64)
        self._scheduled = any(how.schedule for how in hows)
        self._temperatures = self._column([how.temperature for how in hows])
        self._top_p = self._column([how.top_p for how in hows])
        self._min_p = self._column([how.min_p for how in hows])
        self._top_k = torch.tensor([how.top_k for how in hows], device=device).unsqueeze(1)
        self._truncates = any(how.top_p < 1 or how.top_k or how.min_p > 0 for how in hows)
        self._penalised = [
            i
            for i, how in enumerate(hows)
            if how.presence_penalty or how.frequency_penalty or how.repetition_penalty != 1
        ]
        self._bias: torch.Tensor | None = None  # (B, V), made at the first draw that needs it
        self._is_biased = any(how.logit_bias or how.ban_ids for how in hows)
        self._positions = np.array([branch.position for branch in branches])  # at the first draw
        self._drawn = 0
        self._uniforms: torch.Tensor | None = None  # (_AHEAD, B, 1)
        # How many draws may not end a branch yet: by branch, and for all and for any of them.
        self._early_draws = np.array([how.min_tokens for how in hows]) - self._positions
        self._all_early = int(self._early_draws.min())
        self._any_early = int(self._early_draws.max())
        self._early: torch.Tensor | None = None  # (B, V): what may not end a branch too soon
        temperatures = {how.temperature for how in hows}
        self._all_one = temperatures == {1.0} and not self._scheduled
        self._any_greedy = 0.0 in temperatures or self._scheduled
        self._num_top = max((how.logprobs or 0 for how in hows), default=0)

    def draw(self, logits: torch.Tensor) -> Draw:
        """One token per branch.

        Args:
            logits: (B, V) float32; may be overwritten.
        """
        plain = logits.log_softmax(-1)  # what is reported
        is_plain = not self._shape(logits)
        temperatures = self._temperatures
        if self._scheduled:
            temperatures = self._column([self._temperature(b) for b in self._branches])
        if self._all_one and is_plain and not self._truncates:
            probabilities = plain.exp()
        elif self._all_one:
            probabilities = logits.softmax(-1)
        else:
            probabilities = (logits / temperatures.clamp_min(1e-6)).softmax(-1)
        if self._truncates:
            probabilities = self._truncate(probabilities)
        cdf = probabilities.cumsum(-1, dtype=torch.float64)
        target = self._next_uniforms() * cdf[:, -1:]
        ids = torch.searchsorted(cdf, target, right=True).clamp_max_(logits.shape[1] - 1)
        if self._any_greedy:
            ids = torch.where(temperatures == 0, logits.argmax(-1, keepdim=True), ids)
        logps = plain.gather(1, ids).squeeze(1).tolist()
        self._drawn += 1
        return Draw(ids.squeeze(1).tolist(), logps, self._tops(plain))

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device).unsqueeze(1)

    @staticmethod
    def _temperature(branch: Branch) -> float:
        schedule = branch.how.schedule
        return schedule.temperature(branch.position) if schedule else branch.how.temperature

    def _next_uniforms(self) -> torch.Tensor:
        """One number per branch, (B, 1) float64; made for many draws at a time."""
        number = self._drawn % _AHEAD
        if number == 0 or self._uniforms is None:
            positions = self._positions + (self._drawn - number) + np.arange(_AHEAD)[:, None]
            made = uniforms(self._seeds, positions.astype(np.uint64))
            self._uniforms = torch.from_numpy(made).unsqueeze(-1).to(self._device)
        return self._uniforms[number]

    def _shape(self, logits: torch.Tensor) -> bool:
        """Apply penalties, biases and bans in place; whether there were any."""
        for i in self._penalised:
            self._penalise(logits[i], self._branches[i])
        if self._is_biased:
            if self._bias is None:
                self._bias = self._bias_table(logits.shape[1])
            logits += self._bias
        is_early = self._drawn < self._any_early
        if is_early:
            logits.masked_fill_(self._too_early(logits.shape[1]), -torch.inf)
        return bool(self._penalised) or self._is_biased or is_early

    def _too_early(self, vocab_size: int) -> torch.Tensor:
        """What may not be drawn now, (B, V), because it would end a branch too soon."""
        if self._early is None:
            self._early = self._early_table(vocab_size)
        if self._drawn < self._all_early:
            return self._early
        is_early = torch.from_numpy(self._early_draws > self._drawn).to(self._device)
        return self._early & is_early.unsqueeze(1)

    def _penalise(self, row: torch.Tensor, branch: Branch) -> None:
        how = branch.how
        answer = branch.tokens[branch.response_start :]
        if how.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(branch.tokens)), device=self._device)
            values = row[seen]
            factor = how.repetition_penalty
            row[seen] = torch.where(values > 0, values / factor, values * factor)
        if answer and (how.presence_penalty or how.frequency_penalty):
            ids, counts = np.unique(np.array(answer), return_counts=True)
            where = torch.from_numpy(ids).to(self._device)
            times = torch.from_numpy(counts).to(self._device, torch.float32)
            row[where] -= how.presence_penalty + how.frequency_penalty * times

    def _bias_table(self, vocab_size: int) -> torch.Tensor:
        table = torch.zeros(len(self._branches), vocab_size)
        for i, branch in enumerate(self._branches):
            for token, bias in branch.how.logit_bias.items():
                table[i, token] += bias
            table[i, sorted(branch.how.ban_ids)] = -torch.inf
        return table.to(self._device)

    def _early_table(self, vocab_size: int) -> torch.Tensor:
        table = torch.zeros(len(self._branches), vocab_size, dtype=torch.bool)
        for i, branch in enumerate(self._branches):
            table[i, sorted(branch.stop_ids)] = True
        return table.to(self._device)

    def _truncate(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Zero what min-p, top-k and top-p drop, (B, V); the likeliest token always stays."""
        order = probabilities.sort(-1, descending=True)
        values = order.values
        ranks = torch.arange(values.shape[1], device=self._device)
        keep = values >= self._min_p * values[:, :1]
        keep &= (self._top_k == 0) | (ranks < self._top_k)
        kept = values * keep
        share = kept.cumsum(-1) - kept
        keep &= share < self._top_p * kept.sum(-1, keepdim=True)
        keep[:, 0] = True
        return torch.zeros_like(probabilities).scatter_(1, order.indices, values * keep)

    def _tops(self, plain: torch.Tensor) -> list[TopLogps] | None:
        if not self._num_top:
            return None
        top = plain.topk(min(self._num_top, plain.shape[1]), dim=-1)
        rows = zip(top.indices.tolist(), top.values.tolist(), self._branches, strict=True)
        return [
            tuple(zip(ids, values, strict=True))[: branch.how.logprobs or 0]
            for ids, values, branch in rows
        ]
