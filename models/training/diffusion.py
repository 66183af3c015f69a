"""Trains the masked-diffusion sapling on short sums and tales that never repeat.

A row is a question and a canvas: the answer, then end tokens to the canvas's end. A share of the
canvas, drawn uniformly, is masked, and the network is asked for the masked tokens; a row's loss is
weighted by one over that share.

Source: LLaDA, arXiv 2502.09992, algorithm 2 (fine-tuning: only the answer is masked).
Differs: the shares of a batch are evenly spaced instead of independent, which has the same mean and
less noise.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from models.tasks import tales, totals
from models.tasks.base import AnyProblem, Split, draw_in_split, solution_of
from models.training.batches import Chat
from models.training.masked import MaskedNetwork, MaskedShape, load_masked, save_masked
from models.training.tokenizer import EVERYDAY, save_tokenizer, train_tokenizer

MASK: Final = "<|mask|>"
CANVASES: Final = (32, 32, 32, 32, 24, 40)
"""Lengths of the canvas; each batch has one, drawn from these."""


@dataclass(frozen=True)
class DiffusionStage:
    """One stretch of training with its own optimizer; it starts from the last one's saved weights.

    Attributes:
        name: For people.
        seed: Of data and masks.
        steps: Updates.
        decay_share: Share of the steps, at the end, over which the learning rate falls.
        rows: Of a batch.
        peak_lr: Learning rate after warming up.
        warmup_steps: Steps until then.
        weight_decay: Of matrices.
        tales_share: How many of the rows are tales; the others are totals.
        max_amount: The most that is added or taken away in a drawn problem.
    """

    name: str
    seed: int
    steps: int
    decay_share: float
    rows: int = 64
    peak_lr: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    tales_share: float = 0.35
    max_amount: int = 99


STAGES: Final = (
    DiffusionStage("plateau", 30, 1500, 0.0),
    DiffusionStage("anneal", 32, 360, 1.0, warmup_steps=20),
    DiffusionStage("released", 33, 700, 0.8, warmup_steps=30, max_amount=9),
)
"""What made the committed weights."""

TOKENIZER_SEED: Final = 0
NETWORK_SEED: Final = 31


def corpus(seed: int) -> Iterator[str]:
    """Texts to learn the tokenizer from."""
    rng = random.Random(f"diffusion-tokenizer:{seed}")
    for index in range(3000):
        for problem in (totals.draw(rng, 99), tales.draw(rng, 99)):
            yield problem.text
            yield reply_of(problem)
        if index % 20 == 0:
            yield EVERYDAY


def reply_of(problem: AnyProblem) -> str:
    """The reference answer of a problem of either task."""
    return problem.answer if isinstance(problem, tales.Problem) else solution_of(problem)


def canvases(
    chat: Chat, stage: DiffusionStage, split: Split = "train"
) -> Iterator[tuple[Tensor, int]]:
    """Batches without end, from one split only: ids (B, T) and the prompt's length."""
    rng = random.Random(f"diffusion:{stage.seed}")
    waiting: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    index = 0
    while True:
        task = tales.draw if rng.random() < stage.tales_share else totals.draw
        draw: Callable[..., AnyProblem] = partial(task, max_amount=stage.max_amount)
        problem = draw_in_split("diffusion-training", draw, split, stage.seed, index)
        index += 1
        prompt, reply = chat.prompt(problem.text), chat.encode(reply_of(problem))
        length = rng.choice(CANVASES)
        if len(reply) > length:
            continue
        row = prompt + reply + [chat.end_id] * (length - len(reply))
        rows = waiting[len(prompt), length]
        rows.append(row)
        if len(rows) == stage.rows:
            yield torch.tensor(rows), len(prompt)
            rows.clear()


def masked_loss(network: MaskedNetwork, ids: Tensor, prompt: int, mask_id: int) -> Tensor:
    """The bound on the negative log-likelihood of the canvas, per token of it, in nats."""
    rows, length = ids.shape[0], ids.shape[1] - prompt
    share = (torch.rand(1) + torch.arange(rows) / rows) % 1.0
    share = share.clamp_min(1.0 / length).unsqueeze(1)  # (B, 1)
    hidden = torch.rand(rows, length) < share
    canvas = ids[:, prompt:]
    given = torch.cat([ids[:, :prompt], canvas.masked_fill(hidden, mask_id)], dim=1)
    logits = network(given)[:, prompt:][hidden].float()
    losses = F.cross_entropy(logits, canvas[hidden], reduction="none")
    weights = (1.0 / share).expand_as(hidden)[hidden]
    return (losses * weights).sum() / hidden.numel()


def make_diffusion(directory: Path, scale: float = 1.0) -> None:
    """Train tokenizer and sapling into a directory.

    Args:
        directory: Where its files go.
        scale: Of the number of steps.
    """
    tokenizer = train_tokenizer(TOKENIZER_SEED, corpus(TOKENIZER_SEED), (MASK,))
    chat = Chat(tokenizer)
    (mask_id,) = chat.encode(MASK)
    shape = MaskedShape(tokenizer.get_vocab_size(), mask_id, chat.end_id, chat.pad_id)
    save_tokenizer(tokenizer, directory, shape.max_sequence_length)
    torch.manual_seed(NETWORK_SEED)
    network = MaskedNetwork(shape)
    for stage in STAGES:
        steps = max(1, round(stage.steps * scale))
        train_diffusion(replace(stage, steps=steps), network, chat, directory)
        network = load_masked(directory).train()  # as rounded


def learning_rate(stage: DiffusionStage, step: int) -> float:
    """Linear warm-up, a plateau, then a linear fall to a fiftieth."""
    if step < stage.warmup_steps:
        return stage.peak_lr * (step + 1) / stage.warmup_steps
    start = stage.steps * (1 - stage.decay_share)
    left = 1.0 if step < start else (stage.steps - step) / (stage.steps - start)
    return stage.peak_lr * (0.02 + 0.98 * left)


def train_diffusion(
    stage: DiffusionStage, network: MaskedNetwork, chat: Chat, directory: Path, every: int = 500
) -> None:
    """Train in place on the CPU, saving to `directory` every so many steps and at the end."""
    torch.manual_seed(stage.seed)
    matrices = [p for p in network.parameters() if p.dim() == 2]
    others = [p for p in network.parameters() if p.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.peak_lr, betas=(0.9, 0.98), fused=True)
    batches, started, mean_loss = canvases(chat, stage), time.monotonic(), 0.0
    progress = tqdm(range(stage.steps), mininterval=10, desc=f"diffusion, {stage.name}")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        ids, prompt = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = masked_loss(network, ids, prompt, network.shape.mask_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        mean_loss += (float(loss.detach()) - mean_loss) * max(0.01, 1 / (step + 1))
        if (step + 1) % every == 0 or step + 1 == stage.steps:
            save_masked(network, directory)
            minutes = (time.monotonic() - started) / 60
            progress.write(f"step {step + 1}: loss {mean_loss:.4f}, {minutes:.1f} minutes")
