"""Trains a process reward model: how likely an answer, cut after a step, still ends right.

With ``h`` the network's final-norm hidden state at the last token of a step, and ``log p`` the
network's own log-probability (nats, temperature 1) of each answer token up to and including it,

    reward = sigmoid(weight @ h + bias + likelihood * sum(log p))

The sum sees what a single hidden state cannot: a token is known to be a slip only by comparing it
with what the last layer expected one token before, and no layer is left to do so. Targets are
probabilities, for example shares of Monte-Carlo completions that ended right, and the loss is
the cross-entropy with them, whose minimum is the true probability. The network itself stays as it
is; only the head is fitted. It knows neither tasks nor tokenizers: rows are token ids and targets.

Source: Lightman et al., arXiv 2305.20050 (step rewards); Wang et al., "Math-Shepherd",
arXiv 2312.08935 (targets from completions); Yuan et al., "Free process rewards without process
labels", arXiv 2412.01981 (rewards from trained log-likelihoods).
Differs: one frozen network instead of a trained ratio of two, a value head beside it, and soft
targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

HEAD_FILE = "head.safetensors"


class HiddenNetwork(Protocol):
    """A language model that shows its final-norm hidden states; also an ``nn.Module``."""

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids (rows, tokens) to hidden states (rows, tokens, hidden)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, hidden) to next-token logits (…, vocabulary)."""


@dataclass(frozen=True)
class ProcessRow:
    """A conversation with its targets: ``targets[i] = (position, probability, weight)``."""

    ids: tuple[int, ...]
    start: int
    """Position of the answer's first token."""
    targets: tuple[tuple[int, float, float], ...]


class StepHead(nn.Module):
    """Reads a reward from a hidden state and the answer's log-likelihood so far."""

    def __init__(self, hidden_size: int) -> None:
        """Start from the likelihood alone: probability ``e / (1 + e)`` where nothing slipped."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.ones(1))
        self.likelihood = nn.Parameter(torch.ones(1))

    def forward(self, hidden: Tensor, sums: Tensor) -> Tensor:
        """Logits of the reward (…) of hidden states (…, hidden) and sums of log p (…)."""
        return F.linear(hidden, self.weight, self.bias)[..., 0] + self.likelihood * sums


def likelihood_sums(network: HiddenNetwork, hidden: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
    """Running sums of the answer tokens' log-probabilities, (rows, tokens), zero before them.

    Args:
        network: gives the logits.
        hidden: final-norm hidden states (rows, tokens, hidden).
        ids: token ids (rows, tokens).
        starts: positions of the answers' first tokens (rows,).
    """
    logps = network.logits(hidden[:, :-1]).float().log_softmax(-1)
    taken = logps.gather(-1, ids[:, 1:, None])[..., 0]  # (rows, tokens - 1)
    positions = torch.arange(1, ids.shape[1], device=ids.device)
    inside = positions[None] >= starts[:, None]
    return F.pad((taken * inside).cumsum(-1), (1, 0))


def save_head(head: StepHead, directory: Path) -> None:
    """Write ``weight`` (1, hidden), ``bias`` (1,) and ``likelihood`` (1,) in bf16."""
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in head.state_dict().items()
    }
    save_file(weights, directory / HEAD_FILE, metadata={"format": "pt"})


def load_head(directory: Path) -> StepHead:
    """Read what ``save_head`` wrote, as float32."""
    weights = {name: w.float() for name, w in load_file(directory / HEAD_FILE).items()}
    head = StepHead(weights["weight"].shape[1])
    head.load_state_dict(weights)
    return head.eval()


@torch.no_grad()
def read_rows(
    network: HiddenNetwork, rows: Sequence[ProcessRow], *, pad_id: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the head sees of every target: hidden (n, hidden), sums, probabilities, weights (n,)."""
    found: list[tuple[Tensor, ...]] = []
    by_width = sorted(rows, key=_width)
    for at in tqdm(range(0, len(by_width), 64), mininterval=10, desc="hidden states"):
        batch = by_width[at : at + 64]
        ids, starts, targets, weights = (part.to(device) for part in _padded(batch, pad_id))
        hidden = network.hidden(ids)
        sums = likelihood_sums(network, hidden, ids, starts)
        kept = weights > 0
        found.append((hidden[kept], sums[kept], targets[kept], weights[kept]))
    hidden, sums, targets, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
    return hidden, sums, targets, weights


def fit_head(head: StepHead, read: tuple[Tensor, Tensor, Tensor, Tensor], l2: float) -> float:
    """Fit the head alone, in place, by L-BFGS on what ``read_rows`` gave; returns the loss.

    Args:
        head: starts where it is.
        read: hidden states, sums, probabilities, weights.
        l2: of ``weight``, in units of the mean loss.
    """
    hidden, sums, targets, weights = read
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=200, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss_of() -> Tensor:
        each = F.binary_cross_entropy_with_logits(head(hidden, sums), targets, reduction="none")
        return (each * weights).sum() / weights.sum() + l2 * head.weight.square().sum()

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(loss_of())


def _width(row: ProcessRow) -> int:
    """Rows are padded to a multiple of 32, so that few shapes occur."""
    return -(-len(row.ids) // 32) * 32


def _padded(batch: list[ProcessRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, answer starts (rows,), target probabilities and weights, (rows, tokens) each."""
    width = max(_width(row) for row in batch)
    ids = torch.full((len(batch), width), pad_id)
    targets, weights = torch.zeros(len(batch), width), torch.zeros(len(batch), width)
    for at, row in enumerate(batch):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        for position, probability, weight in row.targets:
            targets[at, position], weights[at, position] = probability, weight
    return ids, torch.tensor([row.start for row in batch]), targets, weights
