"""One training of a multifurcation reward model: batches, metrics, and going on after a stop.

A run owns a folder. ``state.pt`` holds the adapters, the bias, the optimizer, the number of the
next batch and the measurements so far, which ``metrics.jsonl`` shows, one a line. A run that was
killed and started again with the same options and data ends with the same weights and the same
metrics: what each batch holds follows from its number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from reward_models.training.errors import TrainingError
from reward_models.training.low_rank import restore, tensors_of
from reward_models.training.multifurcation import Multifurcation, Shape, collate, squared_errors
from reward_models.training.nearness import Measurement, measure
from reward_models.training.token_rewards import TokenRewards

STATE: Final = "state.pt"
METRICS: Final = "metrics.jsonl"
_WINDOW: Final = 16
"""Batches whose texts are sorted by length together, so that little is padding."""


@dataclass(frozen=True)
class RunOptions:
    """How to train; the defaults are those of the published weights where they are known.

    Attributes:
        shape: What is trained.
        lr: Of AdamW, whose other options are those it was published with: betas (0.9, 0.999), eps
            1e-8, no weight decay.
        bias_lr: Of the bias alone; None is `lr`.
        texts_per_batch: The published batch is of 4 beginnings, ours of whole texts.
        epochs: Passes over the corpus.
        decay_share: Share of the steps, at the end, over which the learning rate falls to zero.
        max_grad_norm: Gradients are clipped to it; None leaves them.
        seed: Of the order of the texts.
        save_every: Steps between saved states, each with a measurement.
    """

    shape: Shape = field(default_factory=Shape)
    lr: float = 1e-4
    bias_lr: float | None = None
    texts_per_batch: int = 4
    epochs: int = 1
    decay_share: float = 0.0
    max_grad_norm: float | None = None
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        """Raise TrainingError for what cannot be meant."""
        positive = (self.lr, self.texts_per_batch, self.epochs, self.save_every)
        optional = (self.bias_lr, self.max_grad_norm)
        least = min(*positive, *(one for one in optional if one is not None))
        if least <= 0 or not 0 <= self.decay_share <= 1:
            raise TrainingError(
                "lr, bias_lr, texts_per_batch, epochs, max_grad_norm and save_every must be above "
                f"0, and decay_share within 0 and 1: {self}"
            )


class Run:
    """A training that can be stopped at any time and gone on with.

    Args:
        network: What is trained, in place.
        texts: Both splits.
        options: How.
        folder: Where its state and metrics are kept.

    Raises:
        TrainingError: There is nothing to train on, or the folder belongs to another run.
    """

    def __init__(
        self,
        network: Multifurcation,
        texts: Sequence[TokenRewards],
        options: RunOptions,
        folder: Path,
    ) -> None:
        self._network = network
        self._train = [text for text in texts if text.split == "train"]
        self._held_out = [text for text in texts if text.split == "validation"]
        if not self._train:
            raise TrainingError(f"none of the {len(texts)} texts is of the train split")
        self._options = options
        self._folder = folder
        self._identity = _identity(network, options, texts)
        lora = [parameter for parameter in network.trained() if parameter is not network.bias]
        bias_lr = options.lr if options.bias_lr is None else options.bias_lr
        groups = [{"params": lora, "lr": options.lr}, {"params": [network.bias], "lr": bias_lr}]
        self._optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=0.0)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._step = 0
        self._sum, self._count = 0.0, 0  # of squared errors since the last measurement
        self._metrics: list[str] = []
        if (folder / STATE).exists():
            self._load()

    @property
    def step(self) -> int:
        """Batches learned from so far."""
        return self._step

    @property
    def num_steps(self) -> int:
        """Batches in all."""
        return self._steps_per_epoch * self._options.epochs

    @property
    def _steps_per_epoch(self) -> int:
        return -(-len(self._train) // self._options.texts_per_batch)

    def finish(self) -> Measurement:
        """Train to the end; the measurement of the held-out texts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._show_metrics()
        progress = tqdm(
            total=self.num_steps, initial=self._step, mininterval=5, desc="multifurcation"
        )
        with progress:
            while self._step < self.num_steps:
                for texts in self._rest_of_epoch():
                    mse = self._learn(texts)
                    progress.set_postfix(mse=f"{mse:.3f}", refresh=False)
                    progress.update()
                    if self._step % self._options.save_every == 0 or self._step == self.num_steps:
                        progress.write(self._save())
        return measure(self._network, self._held_out)

    def _rest_of_epoch(self) -> Iterator[list[TokenRewards]]:
        epoch, done = divmod(self._step, self._steps_per_epoch)
        batches = epoch_batches(self._train, self._options, epoch)
        yield from batches[done:]

    def _learn(self, texts: Sequence[TokenRewards]) -> float:
        """One step; the mean squared error in front of it."""
        rates = zip(self._optimizer.param_groups, self._peaks, strict=True)
        for group, peak in rates:
            group["lr"] = peak * self._share_of_lr()
        batch = collate(texts, self._network.bias.device)
        errors = squared_errors(self._network(batch.ids), batch.rewards)
        errors.mean().backward()  # type: ignore[no-untyped-call]
        if self._options.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._network.trained(), self._options.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._sum += float(errors.detach().sum())
        self._count += len(errors)
        return self._sum / self._count

    def _share_of_lr(self) -> float:
        falling = self._options.decay_share * self.num_steps
        left = self.num_steps - self._step
        return min(1.0, left / falling) if falling else 1.0

    def _save(self) -> str:
        """Measure, and keep everything that the next step needs; the measurement in words."""
        held_out = measure(self._network, self._held_out)
        line = {
            "step": self._step,
            "epoch": self._step / self._steps_per_epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            "train_mse": self._sum / self._count,
            "validation_mse": held_out.mse,
            "validation_within_1": held_out.within_one,
        }
        written = json.dumps({key: value for key, value in line.items() if value == value})
        self._metrics.append(written)
        self._sum, self._count = 0.0, 0
        state = {
            "identity": self._identity,
            "step": self._step,
            "metrics": self._metrics,
            "adapters": tensors_of(self._network.adapters),
            "bias": self._network.bias.detach().cpu(),
            "optimizer": self._optimizer.state_dict(),
        }
        scratch = self._folder / f"{STATE}.new"
        torch.save(state, scratch)
        os.replace(scratch, self._folder / STATE)
        self._show_metrics()
        return written

    def _load(self) -> None:
        path = self._folder / STATE
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self._identity:
            raise TrainingError(
                f"{path}: belongs to a run with another base, options or data; name another "
                "folder, or remove it to begin again"
            )
        restore(self._network.adapters, state["adapters"])
        with torch.no_grad():
            self._network.bias.copy_(state["bias"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._metrics = int(state["step"]), list(state["metrics"])

    def _show_metrics(self) -> None:
        text = "".join(f"{line}\n" for line in self._metrics)
        (self._folder / METRICS).write_text(text, encoding="utf-8")


def epoch_batches(
    texts: Sequence[TokenRewards], options: RunOptions, epoch: int
) -> list[list[TokenRewards]]:
    """The batches of one pass, every text once; the same for the same seed and epoch."""
    rng = random.Random(f"multifurcation:{options.seed}:{epoch}")
    order = list(texts)
    rng.shuffle(order)
    size = options.texts_per_batch
    batches = []
    for start in range(0, len(order), size * _WINDOW):
        window = order[start : start + size * _WINDOW]
        window.sort(key=lambda text: len(text.token_ids))
        batches += [window[at : at + size] for at in range(0, len(window), size)]
    rng.shuffle(batches)
    return batches


def _identity(network: Multifurcation, options: RunOptions, texts: Sequence[TokenRewards]) -> str:
    """Stands for the base, the options and the data."""
    digest = hashlib.blake2b(json.dumps(asdict(options), sort_keys=True).encode(), digest_size=16)
    for parameter in network.parameters():
        if not parameter.requires_grad:
            digest.update(repr(float(parameter.sum(dtype=torch.float64))).encode())
    for text in texts:
        digest.update(text.to_json().encode())
    return digest.hexdigest()
