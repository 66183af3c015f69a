"""Trains networks on drawn problems: one epoch over data that never repeats."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from models.tasks import sums
from models.training.batches import Batch, Chat, sums_batches
from models.training.network import Llama, save_checkpoint


@dataclass(frozen=True)
class Stage:
    """One stretch of training with its own mix of levels and its own optimizer."""

    name: str
    seed: int
    steps: int
    levels: tuple[sums.Level, ...]
    shares: tuple[float, ...]
    warmup_steps: int
    decay_share: float
    """Share of the steps, at the end, over which the learning rate falls."""
    tokens_per_batch: int = 4096
    peak_lr: float = 2e-3
    weight_decay: float = 0.05


STAGES = (
    Stage("wide", 20, 2000, (sums.WIDE, sums.RELEASED), (0.6, 0.4), 200, 0.0),
    Stage("broad", 21, 2375, (sums.BROAD, sums.RELEASED), (0.5, 0.5), 100, 0.0),
    Stage("anneal", 22, 950, (sums.BROAD, sums.RELEASED), (0.5, 0.5), 30, 0.95),
)
"""What made the committed weights."""

JUDGE_STAGE = Stage("judge", 23, 1900, (sums.RELEASED,), (1.0,), 50, 0.9)
"""What the reward model's decoder was trained further, so that it knows more than its policy."""


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, a plateau, then a linear fall to a fiftieth (WSD)."""
    if step < stage.warmup_steps:
        return stage.peak_lr * (step + 1) / stage.warmup_steps
    start = stage.steps * (1 - stage.decay_share)
    if step < start:
        return stage.peak_lr
    left = (stage.steps - step) / (stage.steps - start)
    return stage.peak_lr * (0.02 + 0.98 * left)


def stage_words(stage: Stage) -> str:
    """A stage as the cards say it."""
    return (
        f"stage {stage.name}, seed {stage.seed}: {stage.steps} steps of {stage.tokens_per_batch} "
        f"tokens, AdamW, learning rate to {stage.peak_lr:g}, falling over the last "
        f"{stage.decay_share:.0%}"
    )


def train_stage(
    stage: Stage,
    network: Llama,
    chat: Chat,
    directory: Path,
    *,
    device: str = "cpu",
    is_compiled: bool = True,
    watch: Callable[[Llama, int], str] | None = None,
    every: int = 500,
    batches: Iterator[Batch] | None = None,
    loss: nn.Module | None = None,
    save: Callable[[], None] | None = None,
) -> None:
    """Train in place, saving to ``directory`` every so many steps.

    Args:
        stage: settings.
        network: what is trained.
        chat: the tokenizer.
        directory: where checkpoints go; the last one is the result.
        device: ``cpu`` or ``cuda``.
        is_compiled: whether torch compiles the loss, which needs a C++ compiler.
        watch: called with each checkpoint; what it returns is printed.
        every: steps between checkpoints.
        batches: what is learned, without end; None: word problems of the stage's levels.
        loss: makes one number of a batch's parts, and holds all that is trained; None: the
            next-token loss of the network.
        save: writes a checkpoint; None: the network's.
    """
    torch.manual_seed(stage.seed)
    plain = _Loss(network) if loss is None else loss
    optimizer = torch.optim.AdamW(
        _groups(plain, stage.weight_decay), lr=stage.peak_lr, betas=(0.9, 0.98), fused=True
    )
    loss_of = cast(
        "Callable[..., Tensor]",
        torch.compile(plain, dynamic=False) if is_compiled else plain,
    )
    started, mean_loss = time.monotonic(), 0.0
    if batches is None:
        batches = sums_batches(chat, stage.seed, stage.tokens_per_batch, stage.levels, stage.shares)
    desc = f"stage {stage.name}, seed {stage.seed}"
    progress = tqdm(range(stage.steps), mininterval=10, desc=desc)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        found = _step(plain, loss_of, optimizer, next(batches), device)
        mean_loss += (found - mean_loss) * max(0.01, 1 / (step + 1))
        progress.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if (step + 1) % every == 0 or step + 1 == stage.steps:
            if save is None:
                save_checkpoint(network, directory, chat.begin_id, chat.end_id, chat.pad_id)
            else:
                save()
            minutes = (time.monotonic() - started) / 60
            seen = watch(network, step + 1) if watch else ""
            tqdm.write(f"step {step + 1} loss {mean_loss:.4f} {minutes:.1f} min {seen}")


def next_token_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of tokens 1… of rows (B, T), by weight; logits (B, T - 1, vocabulary)."""
    each = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
    return (each * weights[:, 1:]).sum() / weights[:, 1:].sum()


class _Loss(nn.Module):
    """Weighted next-token loss: over solution tokens in the main."""

    def __init__(self, network: Llama) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return next_token_loss(self.network(ids[:, :-1]), ids, weights)


def _step(
    trained: nn.Module,
    loss_of: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    device: str,
) -> float:
    with half_precision(device):
        loss = loss_of(*(part.to(device) for part in batch.parts))
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def half_precision(device: str) -> AbstractContextManager[None]:
    """Matrix products in bfloat16; weights and sums stay float32."""
    return cast("AbstractContextManager[None]", torch.autocast(device, torch.bfloat16))


def _groups(trained: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in trained.parameters() if parameter.dim() == 2]
    scales = [parameter for parameter in trained.parameters() if parameter.dim() != 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
