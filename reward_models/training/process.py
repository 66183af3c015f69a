"""Trains a process reward model: a head that reads how likely each step still ends right.

The reading is the base's final-norm hidden state at the last token of a step; the reward is the
sigmoid of a linear head on it. Targets are probabilities, for example shares of Monte-Carlo
completions that ended right, and the loss is the cross-entropy with them, whose minimum is the
true probability. It knows neither tasks nor tokenizers: rows are token ids and targets.

Source: Lightman et al., arXiv 2305.20050 (step rewards); Wang et al., "Math-Shepherd",
arXiv 2312.08935, section 3.3 (targets from completions).
Differs: soft targets; every token of the answer is a weak target too, so that a step that was cut
short can be read as well.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

HEAD_FILE = "head.safetensors"


class HiddenNetwork(Protocol):
    """A network that shows its final-norm hidden states; also an ``nn.Module``."""

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids (rows, tokens) to hidden states (rows, tokens, hidden)."""


@dataclass(frozen=True)
class ProcessRow:
    """A conversation with its targets: ``targets[i] = (position, probability, weight)``."""

    ids: tuple[int, ...]
    targets: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class ProcessRun:
    """Settings of a training run; the defaults made the committed weights."""

    seed: int = 30
    epochs: int = 2
    tokens_per_batch: int = 4096
    peak_lr: float = 1.5e-3
    warmup_steps: int = 50
    device: str = "cpu"
    compile: bool = True


class StepHead(nn.Module):
    """A linear reading of a hidden state."""

    def __init__(self, hidden_size: int) -> None:
        """Start at probability one half everywhere."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of the reward: (…, hidden) to (…)."""
        return F.linear(hidden, self.weight, self.bias)[..., 0]


def save_head(head: StepHead, directory: Path) -> None:
    """Write ``weight`` (1, hidden) and ``bias`` (1,) in bf16."""
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


def train_process(
    run: ProcessRun,
    network: HiddenNetwork,
    head: StepHead,
    trained: Sequence[nn.Parameter],
    rows: Sequence[ProcessRow],
    *,
    pad_id: int,
    watch: Callable[[int], str] | None = None,
    every: int = 200,
) -> None:
    """Train ``trained`` and the head, in place; ``watch`` is called now and then and printed."""
    torch.manual_seed(run.seed)
    rng = random.Random(f"process:{run.seed}")
    batches = [
        batch for _ in range(run.epochs) for batch in _batches(rows, run.tokens_per_batch, rng)
    ]
    groups = [
        {"params": list(trained), "weight_decay": 0.01},
        {"params": list(head.parameters()), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.peak_lr, betas=(0.9, 0.98))
    plain = _Loss(network, head)
    loss_of = cast(
        "Callable[..., Tensor]", torch.compile(plain, dynamic=False) if run.compile else plain
    )
    started, mean_loss = time.monotonic(), 0.0
    progress = tqdm(batches, mininterval=10, desc=f"process reward model, seed {run.seed}")
    for step, batch in enumerate(progress):
        for group in optimizer.param_groups:
            group["lr"] = run.peak_lr * _ramp(step, len(batches), run.warmup_steps)
        ids, targets, weights = (part.to(run.device) for part in _padded(batch, pad_id))
        with torch.autocast(run.device, torch.bfloat16):
            loss = loss_of(ids, targets, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*trained, *head.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss += (float(loss.detach()) - mean_loss) * max(0.02, 1 / (step + 1))
        progress.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if watch is not None and ((step + 1) % every == 0 or step + 1 == len(batches)):
            minutes = (time.monotonic() - started) / 60
            tqdm.write(f"step {step + 1} loss {mean_loss:.4f} {minutes:.1f} min {watch(step + 1)}")


class _Loss(nn.Module):
    def __init__(self, network: HiddenNetwork, head: StepHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = self.head(self.network.hidden(ids)).float()
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (each * weights).sum() / weights.sum()


def _ramp(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a linear fall to nothing; a factor in 0…1."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def _width(row: ProcessRow) -> int:
    """Rows are padded to a multiple of 32, so that few shapes occur."""
    return -(-len(row.ids) // 32) * 32


def _batches(
    rows: Sequence[ProcessRow], tokens_per_batch: int, rng: random.Random
) -> Iterator[list[ProcessRow]]:
    """Shuffled batches of rows of like width; what does not fill a batch is left out."""
    by_width: dict[int, list[ProcessRow]] = {}
    for row in rng.sample(rows, len(rows)):
        by_width.setdefault(_width(row), []).append(row)
    full = []
    for width, group in by_width.items():
        size = max(1, tokens_per_batch // width)
        full += [group[at : at + size] for at in range(0, len(group) - size + 1, size)]
    yield from rng.sample(full, len(full))


def _padded(batch: list[ProcessRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, target probabilities and weights, (rows, tokens) each."""
    width = _width(batch[0])
    ids = torch.full((len(batch), width), pad_id)
    targets, weights = torch.zeros(len(batch), width), torch.zeros(len(batch), width)
    for at, row in enumerate(batch):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        for position, probability, weight in row.targets:
            targets[at, position], weights[at, position] = probability, weight
    return ids, targets, weights
