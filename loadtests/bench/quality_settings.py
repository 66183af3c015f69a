"""What `bough bench quality` is asked to measure."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.bench.questions import Source, of_file, of_task
from loadtests.bench.saplings import Saplings, open_configured, open_saplings
from models.tasks import sums
from models.tasks.base import Split

STRATEGIES: Final = ("single", "self_consistency", "best_of_n", "beam", "ets")
BUDGETS: Final = (800,)


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        problems: Test problems of a strategy and a seed.
        strategies: Which; gains are over the first one that votes or picks among samples.
        budgets: Mean generated tokens of a problem; the first one is the main budget.
        seeds: Of problems and runs; their rows count as one sample.
        task: A bundled task's name, or that of the file.
        file: Questions in place of a bundled task.
        config: Settings of a server, in place of the bundled models.
        model: Of those settings; the first by default.
        judge: Of those settings; the model's own by default.
        max_tokens: Of an answer.
        calibration: Validation problems of each round that corrects a width.
    """

    problems: int
    strategies: tuple[str, ...] = STRATEGIES
    budgets: tuple[int, ...] = BUDGETS
    seeds: tuple[int, ...] = (0,)
    task: str = sums.NAME
    file: Path | None = None
    config: Path | None = None
    model: str | None = None
    judge: str | None = None
    max_tokens: int = 256
    calibration: tuple[int, ...] = (32, 96)

    def source(self, seed: int, split: Split) -> Source:
        """The questions of a seed and a split."""
        if self.file is not None:
            return of_file(self.file, split=split)
        return of_task(self.task, seed=seed, split=split)

    def opened(self) -> AbstractAsyncContextManager[Saplings]:
        """The models."""
        if self.config is not None:
            return open_configured(self.config, self.model, self.judge, self.max_tokens)
        return open_saplings(max_tokens=self.max_tokens)
