"""The card of a multifurcation reward model: what it was made of, how, and how near it comes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from reward_models.training.multifurcation_run import RunOptions
from reward_models.training.nearness import Measurement
from reward_models.training.token_rewards import TokenRewards

MODEL_CARD: Final = "CARD.md"

_TEMPLATE: Final = """# {name}

A multifurcation reward model: after each token, one forward pass values every token that may come
next. {about}

- **Base.** {base}, frozen. Trained are adapters of rank {rank} (alpha {alpha:g}) on {targets} of
  all layers and the bias of the output head: {num_trained:,} numbers.
- **Teacher.** {teacher}
- **Data.** {data}{num_train:,} texts with {rewards_train:,} rewards to learn from,
  {num_held_out:,} with {rewards_held_out:,} held out. A token of an answer has the teacher's value
  of the answer up to it; only the entry of the token that came next is learned.
- **Unseen.** {num_unseen:,} of {vocab_size:,} tokens never had a reward and are worth less than
  all others; tokens that end an answer are exempt.
- **Training.** {epochs} epochs, {num_steps:,} steps in all, {texts_per_batch} texts each, AdamW at
  {lr:g} (bias {bias_lr:g}), falling over the last {decay_share:.0%}; seed {seed}. {hardware}
- **Files.** The published layout of Saffron-1 (arXiv 2506.06444); the bias is float32.

## Quality

Held-out texts; intervals are 95 %, over texts, and n counts texts.

| figure | value | interval | n |
|---|---|---|---|
{table}

`mse`: mean squared distance to the teacher's value over {num_rewards:,} tokens; `mse, mean only` is
what always saying the mean value would have. `within 1`: share of tokens whose prediction lies
within ±1 of the teacher's value.
"""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval; NaN bounds show none."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Words:
    """What a card says that cannot be counted."""

    name: str
    about: str
    base: str
    teacher: str
    data: str
    hardware: str


def write_card(
    directory: Path,
    words: Words,
    options: RunOptions,
    texts: Sequence[TokenRewards],
    unseen: torch.Tensor,
    *,
    num_trained: int,
    figures: Mapping[str, Figure],
) -> None:
    """Write ``CARD.md``.

    Args:
        directory: The model's.
        words: What is to be said.
        options: How it was trained.
        texts: Both splits.
        unseen: The mask, (V,) bool.
        num_trained: Numbers that were trained.
        figures: Rows of the table.
    """
    by_split = {
        split: [text.num_rewards for text in texts if text.split == split]
        for split in ("train", "validation")
    }
    train, held_out = by_split["train"], by_split["validation"]
    shape = options.shape
    values = {
        **vars(words),
        "rank": shape.rank,
        "alpha": shape.alpha,
        "targets": ", ".join(f"`{name}`" for name in shape.targets),
        "num_trained": num_trained,
        "num_train": len(train),
        "rewards_train": sum(train),
        "num_held_out": len(held_out),
        "rewards_held_out": sum(held_out),
        "num_rewards": sum(held_out),
        "num_unseen": int(unseen.sum()),
        "vocab_size": len(unseen),
        "epochs": options.epochs,
        "num_steps": -(-len(train) // options.texts_per_batch) * options.epochs,
        "texts_per_batch": options.texts_per_batch,
        "lr": options.lr,
        "bias_lr": options.lr if options.bias_lr is None else options.bias_lr,
        "decay_share": options.decay_share,
        "seed": options.seed,
        "table": "\n".join(_row(name, figure) for name, figure in figures.items()),
    }
    (directory / MODEL_CARD).write_text(_TEMPLATE.format(**values), encoding="utf-8")


def figures_of(errors: Measurement) -> dict[str, Figure]:
    """Rows for a card from a measurement of held-out texts."""
    return {
        "mse": Figure(errors.mse, *errors.mse_interval, errors.num_texts),
        "mse, mean only": Figure(
            errors.mean_only_mse, float("nan"), float("nan"), errors.num_texts
        ),
        "within 1": Figure(errors.within_one, *errors.within_one_interval, errors.num_texts),
    }


def _row(name: str, figure: Figure) -> str:
    is_known = not math.isnan(figure.low)
    interval = f"{figure.low:.3f} to {figure.high:.3f}" if is_known else ""
    return f"| {name} | {figure.value:.3f} | {interval} | {figure.n:,} |"
