"""Drawing tokens from logits, a whole batch at once.

Every draw uses one uniform number that depends on the branch's seed and the position in its answer
and on nothing else, so neither the batch around a branch nor the pace of the scheduler changes what
it says.

Letters: B branches, N rows (nodes of drafted trees), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from engines.base import TokenIds, TopLogps
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


@dataclass(frozen=True)
class Nodes:
    """Where the rows of a verification stand: each branch's last token, then what was drafted.

    Attributes:
        rows: Number of the branch of every row, (N,).
        depths: Drafted tokens between the branch's last token and the row, this one included, (N,).
        path: Those tokens, by row.
    """

    rows: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    path: Callable[[int], TokenIds]


@dataclass(frozen=True)
class NodeDraw(Draw):
    """A draw after every row, with the likeliest tokens there at the branch's temperature.

    Attributes:
        top_ids: By row, likeliest first; empty where none were asked for.
        top_probs: Their probabilities, before penalties and truncation; at temperature 1 where the
            branch's is 0.
    """

    top_ids: list[list[int]]
    top_probs: list[list[float]]


@dataclass(frozen=True)
class _Columns:
    """Options that shape a row's distribution, each (N, 1)."""

    temperatures: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor

    def take(self, rows: torch.Tensor) -> _Columns:
        """Those of other rows, by number."""
        return _Columns(
            self.temperatures[rows], self.top_p[rows], self.min_p[rows], self.top_k[rows]
        )


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
        self._columns = _Columns(
            self._column([how.temperature for how in hows]),
            self._column([how.top_p for how in hows]),
            self._column([how.min_p for how in hows]),
            torch.tensor([how.top_k for how in hows], device=device).unsqueeze(1),
        )
        self._truncates = any(how.top_p < 1 or how.top_k or how.min_p > 0 for how in hows)
        self._penalised = [
            i
            for i, how in enumerate(hows)
            if how.presence_penalty or how.frequency_penalty or how.repetition_penalty != 1
        ]
        self._bias: torch.Tensor | None = None  # (B, V), made at the first draw that needs it
        self._is_biased = any(how.logit_bias or how.ban_ids for how in hows)
        self._min_tokens = np.array([how.min_tokens for how in hows])
        self._early: torch.Tensor | None = None  # (B, V): what may not end a branch too soon
        temperatures = {how.temperature for how in hows}
        self._all_one = temperatures == {1.0} and not self._scheduled
        self._all_greedy = temperatures == {0.0} and not self._scheduled
        self._any_greedy = 0.0 in temperatures or self._scheduled
        self._num_top = max((how.logprobs or 0 for how in hows), default=0)
        self._restart()

    def _restart(self) -> None:
        """Go on from where the branches stand now."""
        self._positions = np.array([branch.position for branch in self._branches])
        self._drawn = 0
        self._uniforms: torch.Tensor | None = None  # (_AHEAD, B, 1)
        # How many draws may not end a branch yet: by branch, and for all and for any of them.
        self._early_draws = self._min_tokens - self._positions
        self._all_early = int(self._early_draws.min())
        self._any_early = int(self._early_draws.max())
        self._is_behind = False

    def draw(self, logits: torch.Tensor) -> Draw:
        """One token per branch.

        Args:
            logits: (B, V) float32; may be overwritten.
        """
        if self._is_behind:
            self._restart()
        plain = logits.log_softmax(-1)  # what is reported
        is_plain = not self._shape(logits)
        columns = self._columns
        if self._scheduled:
            at = [branch.position for branch in self._branches]
            columns = replace(columns, temperatures=self._temperatures(range(len(at)), at))
        ids = self._choose(logits, plain, is_plain, columns, self._next_uniforms())
        logps = plain.gather(1, ids).squeeze(1).tolist()
        self._drawn += 1
        tops = self._tops(plain, self._branches) if self._num_top else None
        return Draw(ids.squeeze(1).tolist(), logps, tops)

    def draw_nodes(self, logits: torch.Tensor, nodes: Nodes, num_tops: int = 0) -> NodeDraw:
        """One token after every row, from the distribution that plain decoding has there.

        The uniform number is that of the branch's seed and the position, so what `draw` would say
        after the same tokens is what this says; nodes of one depth share a number, of which only
        one is ever looked at. The branches do not move.

        Args:
            logits: (N, V) float32; may be overwritten.
            nodes: Where the rows stand.
            num_tops: How many of the likeliest tokens to report.
        """
        self._is_behind = True
        plain = logits.log_softmax(-1)
        branches, rows = self._branches, nodes.rows
        at = np.array([branch.position for branch in branches])[rows] + nodes.depths
        is_plain = not self._shape_nodes(logits, nodes, at)
        columns = self._columns.take(torch.from_numpy(rows).to(self._device))
        if self._scheduled:
            columns = replace(columns, temperatures=self._temperatures(rows.tolist(), at.tolist()))
        made = uniforms(self._seeds[rows], at.astype(np.uint64))
        unit = torch.from_numpy(made).unsqueeze(1).to(self._device)
        ids = self._choose(logits, plain, is_plain, columns, unit)
        logps = plain.gather(1, ids).squeeze(1).tolist()
        tops = self._tops(plain, [branches[i] for i in rows]) if self._num_top else None
        shares = ([], []) if not num_tops else self._shares(plain, columns.temperatures, num_tops)
        return NodeDraw(ids.squeeze(1).tolist(), logps, tops, *shares)

    def _shares(
        self, plain: torch.Tensor, temperatures: torch.Tensor, count: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The `count` likeliest ids of every row and their probabilities at its temperature."""
        if self._all_one or self._all_greedy:
            top = plain.topk(min(count, plain.shape[1]), dim=-1)
            return top.indices.tolist(), top.values.exp().tolist()
        heat = torch.where(temperatures == 0, 1.0, temperatures)
        top = (plain / heat).softmax(-1).topk(min(count, plain.shape[1]), dim=-1)
        return top.indices.tolist(), top.values.tolist()

    def _choose(
        self,
        logits: torch.Tensor,
        plain: torch.Tensor,
        is_plain: bool,
        columns: _Columns,
        unit: torch.Tensor,
    ) -> torch.Tensor:
        """The ids (N, 1) that the uniform numbers (N, 1) pick."""
        if self._all_greedy:
            return logits.argmax(-1, keepdim=True)
        temperatures = columns.temperatures
        if self._all_one and is_plain and not self._truncates:
            probabilities = plain.exp()
        elif self._all_one:
            probabilities = logits.softmax(-1)
        else:
            probabilities = (logits / temperatures.clamp_min(1e-6)).softmax(-1)
        if self._truncates:
            probabilities = _truncate(probabilities, columns)
        cdf = probabilities.cumsum(-1, dtype=torch.float64)
        target = unit * cdf[:, -1:]
        ids = torch.searchsorted(cdf, target, right=True).clamp_max_(logits.shape[1] - 1)
        if self._any_greedy:
            ids = torch.where(temperatures == 0, logits.argmax(-1, keepdim=True), ids)
        return ids

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device).unsqueeze(1)

    def _temperatures(self, rows: Iterable[int], positions: Iterable[int]) -> torch.Tensor:
        """Temperatures (N, 1) of the branches with these numbers at these positions."""
        hows = [self._branches[i].how for i in rows]
        return self._column(
            [
                how.schedule.temperature(at) if how.schedule else how.temperature
                for how, at in zip(hows, positions, strict=True)
            ]
        )

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
            self._penalise(logits[i], self._branches[i], ())
        if self._is_biased:
            logits += self._bias_of(logits.shape[1])
        is_early = self._drawn < self._any_early
        if is_early:
            logits.masked_fill_(self._too_early(logits.shape[1]), -torch.inf)
        return bool(self._penalised) or self._is_biased or is_early

    def _shape_nodes(
        self, logits: torch.Tensor, nodes: Nodes, positions: npt.NDArray[np.int64]
    ) -> bool:
        """`_shape` for rows at their own positions, each after its own path."""
        if self._penalised:
            penalised = set(self._penalised)
            for row, i in enumerate(nodes.rows.tolist()):
                if i in penalised:
                    self._penalise(logits[row], self._branches[i], nodes.path(row))
        rows = torch.from_numpy(nodes.rows).to(self._device)
        if self._is_biased:
            logits += self._bias_of(logits.shape[1])[rows]
        is_early = positions < self._min_tokens[nodes.rows]
        any_early = bool(is_early.any())
        if any_early:
            if self._early is None:
                self._early = self._early_table(logits.shape[1])
            early = torch.from_numpy(is_early).to(self._device).unsqueeze(1)
            logits.masked_fill_(self._early[rows] & early, -torch.inf)
        return bool(self._penalised) or self._is_biased or any_early

    def _too_early(self, vocab_size: int) -> torch.Tensor:
        """What may not be drawn now, (B, V), because it would end a branch too soon."""
        if self._early is None:
            self._early = self._early_table(vocab_size)
        if self._drawn < self._all_early:
            return self._early
        is_early = torch.from_numpy(self._early_draws > self._drawn).to(self._device)
        return self._early & is_early.unsqueeze(1)

    def _penalise(self, row: torch.Tensor, branch: Branch, path: TokenIds) -> None:
        how = branch.how
        tokens = [*branch.tokens, *path]
        answer = tokens[branch.response_start :]
        if how.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(tokens)), device=self._device)
            values = row[seen]
            factor = how.repetition_penalty
            row[seen] = torch.where(values > 0, values / factor, values * factor)
        if answer and (how.presence_penalty or how.frequency_penalty):
            ids, counts = np.unique(np.array(answer), return_counts=True)
            where = torch.from_numpy(ids).to(self._device)
            times = torch.from_numpy(counts).to(self._device, torch.float32)
            row[where] -= how.presence_penalty + how.frequency_penalty * times

    def _bias_of(self, vocab_size: int) -> torch.Tensor:
        if self._bias is None:
            self._bias = self._bias_table(vocab_size)
        return self._bias

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

    def _tops(self, plain: torch.Tensor, branches: Seq[Branch]) -> list[TopLogps]:
        """The likeliest ids of every row, as many as its branch asked for."""
        top = plain.topk(min(self._num_top, plain.shape[1]), dim=-1)
        rows = zip(top.indices.tolist(), top.values.tolist(), branches, strict=True)
        return [
            tuple(zip(ids, values, strict=True))[: branch.how.logprobs or 0]
            for ids, values, branch in rows
        ]


def _truncate(probabilities: torch.Tensor, columns: _Columns) -> torch.Tensor:
    """Zero what min-p, top-k and top-p drop, (N, V); the likeliest token always stays."""
    order = probabilities.sort(-1, descending=True)
    values = order.values
    ranks = torch.arange(values.shape[1], device=values.device)
    keep = values >= columns.min_p * values[:, :1]
    keep &= (columns.top_k == 0) | (ranks < columns.top_k)
    kept = values * keep
    share = kept.cumsum(-1) - kept
    keep &= share < columns.top_p * kept.sum(-1, keepdim=True)
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, order.indices, values * keep)
