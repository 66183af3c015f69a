"""Strategies on the same problems at one budget of generated tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rich.table import Table

from loadtests.bench import paired
from loadtests.bench.figures import Bench, Better
from loadtests.bench.quality_page import Point
from loadtests.bench.quality_settings import Settings
from loadtests.bench.saplings import Saplings
from loadtests.bench.trials import Contender, Lab, Rows
from models import evaluate
from models.tasks.base import Split
from search import plugins

FLOOR: Final = "single"
DIFFERENCES: Final = (("ets", "self_consistency"), ("self_consistency", "single"))
_MEASURES: Final = ("accuracy", "tokens", "seconds", "peak_kv", "gain")
_MAX_WIDTH: Final = 128.0
_TOLERANCE: Final = 0.05


def figure_names(settings: Settings, budget: int) -> list[str]:
    """Every figure of a budget."""
    task, main = settings.task, budget == settings.budgets[0]
    names = [
        f"quality.{task}.{measure}.{strategy}.b{budget}"
        for measure in _MEASURES
        for strategy in settings.strategies
        if measure != "gain" or strategy != baseline_of(settings.strategies)
    ]
    if any(has_width(name) for name in settings.strategies):
        names.append(f"quality.{task}.token_gap.b{budget}")
    if main:
        names += [f"quality.{task}.z.{a}_minus_{b}" for a, b in _differences(settings)]
        names += [
            f"quality.{task}.accuracy_at_equal_seconds.{strategy}.b{budget}"
            for strategy in settings.strategies
            if has_width(strategy)
        ]
    return names


def baseline_of(strategies: Sequence[str]) -> str:
    """What gains are over: self-consistency, else the first."""
    return "self_consistency" if "self_consistency" in strategies else strategies[0]


def has_width(strategy: str) -> bool:
    """Whether a strategy can be brought to a budget."""
    kind = plugins.load("bough.strategies")[strategy]
    return "width" in kind.Params.model_fields


def paired_z(one: Rows, other: Rows) -> float:
    """Mean difference of right answers over its standard error; 0 where nothing differs."""
    difference = one.right - other.right
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return float(difference.mean()) / (spread / math.sqrt(len(difference))) if spread else 0.0


def _differences(settings: Settings) -> list[tuple[str, str]]:
    return [pair for pair in DIFFERENCES if set(pair) <= set(settings.strategies)]


class Comparison:
    """All strategies at one budget.

    Args:
        bench: Where figures go.
        saplings: The models.
        settings: What to measure.
        budget: Mean generated tokens of a problem.
        count: Test problems of each seed.
    """

    def __init__(
        self, bench: Bench, saplings: Saplings, settings: Settings, budget: int, count: int
    ) -> None:
        self._bench = bench
        self._settings = settings
        self._budget = budget
        self._is_main = budget == settings.budgets[0]
        self._count = count
        name = "quality" if settings.task == "sums" else f"quality.{settings.task}"

        def lab(split: Split, seed: int) -> Lab:
            source = settings.source(seed, split)
            return Lab(bench, saplings, split, name=name, source=source, seed=seed)

        self._validation = lab("validation", settings.seeds[0])
        self._tests = [lab("test", seed) for seed in settings.seeds]
        self._contenders: dict[str, Contender] = {}
        self._rows: dict[str, Rows] = {}

    async def measure(self) -> list[Point]:
        """Calibrate, run, and put the figures; none where time runs out."""
        for strategy in self._settings.strategies:
            contender = await self._calibrated(strategy)
            rows = None if contender is None else await self._run(contender, self._count)
            if contender is None or rows is None:
                return []
            self._contenders[strategy], self._rows[strategy] = contender, rows
        points = [self._put(strategy) for strategy in self._rows]
        self._put_differences()
        self._print(points)
        if self._is_main:
            await self._at_equal_seconds()
        return points

    async def _run(self, contender: Contender, count: int) -> Rows | None:
        """The test problems of every seed."""
        found = []
        for lab in self._tests:
            rows = await lab.run(contender, range(count))
            if rows is None:
                return None
            found.append(rows)
        return Rows.joined(found)

    async def _calibrated(self, strategy: str) -> Contender | None:
        """The contender whose mean tokens on the validation split are the budget."""
        if not has_width(strategy):
            return Contender(strategy)
        validation, sizes = self._validation, self._settings.calibration
        one = await validation.run(Contender(FLOOR), range(sizes[-1]))
        if one is None:
            return None
        width = self._budget / float(one.tokens.mean())
        for size in sizes:
            contender = Contender(strategy, _rounded(width))
            rows = await validation.run(contender, range(size))
            if rows is None:
                return None
            mean = float(rows.tokens.mean())
            self._bench.say(f"b{self._budget} {strategy}({contender}): {mean:.0f} tokens")
            width = contender.width * self._budget / mean
        return Contender(strategy, _rounded(width))

    def _put(self, strategy: str) -> Point:
        rows, seed = self._rows[strategy], self._bench.seed
        base = baseline_of(self._settings.strategies)
        accuracy = evaluate.share(float(rows.right.sum()), len(rows))
        self._figure("accuracy", strategy, accuracy, "share", "higher")
        tokens = paired.mean(rows.tokens, seed)
        self._figure("tokens", strategy, tokens, "tokens", "lower")
        # Completions come in bursts, so the times between them say nothing of the mean's spread.
        seconds = float(rows.seconds.mean())
        name = f"quality.{self._settings.task}.seconds.{strategy}.b{self._budget}"
        self._bench.put(name, seconds, unit="s", n=len(rows), better="lower")
        cache = paired.mean(rows["peak_kv"], seed)
        self._figure("peak_kv", strategy, cache, "tokens", "lower")
        gain = None
        if strategy != base:
            gain = paired.difference(rows.right, self._rows[base].right, seed)
            self._figure("gain", strategy, gain, "share", "higher")
        knobs = str(self._contenders[strategy])
        return Point(
            strategy, knobs, self._budget, accuracy, gain, tokens.value, seconds, cache.value
        )

    def _figure(
        self, measure: str, strategy: str, got: evaluate.Measured, unit: str, better: Better
    ) -> None:
        name = f"quality.{self._settings.task}.{measure}.{strategy}.b{self._budget}"
        self._bench.put_measured(name, got, unit=unit, better=better)

    def _put_differences(self) -> None:
        task = self._settings.task
        searchers = [name for name in self._rows if has_width(name)]
        if searchers:
            means = [float(self._rows[name].tokens.mean()) for name in searchers]
            gap = max(abs(mean / self._budget - 1) for mean in means)
            name = f"quality.{task}.token_gap.b{self._budget}"
            self._bench.put(name, gap, unit="share", n=self._count, better="lower")
            if gap > _TOLERANCE:
                self._bench.say(f"tokens are {gap:.1%} off the budget; equal means within 5 %")
        for one, other in _differences(self._settings) if self._is_main else ():
            z = paired_z(self._rows[one], self._rows[other])
            name = f"quality.{task}.z.{one}_minus_{other}"
            n = len(self._rows[one])
            self._bench.put(name, z, unit="standard errors", n=n, better="higher")

    async def _at_equal_seconds(self) -> None:
        """Every search may take as long as the slowest; compared on the first eighth."""
        count = max(1, self._count // 8)
        searchers = [name for name in self._rows if has_width(name)]
        seconds = {name: float(self._rows[name].seconds.mean()) for name in searchers}
        slowest = max(seconds.values(), default=0.0)
        for strategy in searchers:
            width = self._contenders[strategy].width * slowest / seconds[strategy]
            contender = replace(self._contenders[strategy], width=_rounded(width))
            rows = await self._run(contender, count)
            if rows is None:
                return
            spent = float(rows.seconds.mean())
            self._bench.say(f"equal seconds, {strategy}({contender}): {spent:.3f} s a problem")
            accuracy = evaluate.share(float(rows.right.sum()), len(rows))
            self._figure("accuracy_at_equal_seconds", strategy, accuracy, "share", "higher")

    def _print(self, points: Sequence[Point]) -> None:
        title = f"{self._settings.task}, {self._count} problems a seed, b{self._budget}"
        table = Table(title=title)
        for column in ("strategy", "knobs", "accuracy", "± 95 %", "tokens", "seconds", "peak KV"):
            is_text = column in ("strategy", "knobs")
            table.add_column(column, justify="left" if is_text else "right")
        for point in points:
            half = (point.accuracy.high - point.accuracy.low) / 2
            table.add_row(
                point.strategy,
                point.knobs,
                f"{point.accuracy.value:.3f}",
                f"{half:.3f}",
                f"{point.tokens:.0f}",
                f"{point.seconds:.3f}",
                f"{point.peak_kv:.0f}",
            )
        self._bench.console.print(table)


def _rounded(width: float) -> float:
    return round(min(_MAX_WIDTH, max(1.0, width)), 2)
