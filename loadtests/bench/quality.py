"""``bough bench quality``: what search buys on held-out word problems, at equal cost.

Every strategy is brought to the same mean of generated tokens, its *budget*, by its width alone,
on the validation split; `single` is the floor of one sample. Then all answer the same test
problems with the same seeds, so that differences are paired: z is the mean difference of right
answers over its standard error. Tokens are the generator's, whatever became of them; the judge's
come on top and show in the seconds, which are wall time per problem with 24 problems in flight.

At equal wall clock the cheaper strategies are run again, on the first eighth of the problems, with
their widths raised in the ratio of seconds. ``--n`` is the number of problems (default 1000); a
budget beside the main one gets a quarter of them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from rich.table import Table

from loadtests.bench.figures import Bench, bench_command
from loadtests.bench.saplings import Limited, Saplings, open_saplings
from loadtests.bench.trials import Contender, Lab, Rows
from models import evaluate

FLOOR: Final = "single"
SEARCHERS: Final = ("self_consistency", "best_of_n", "beam", "ets")
STRATEGIES: Final = (FLOOR, *SEARCHERS)
MAIN_BUDGET: Final = 800
BUDGETS: Final = (MAIN_BUDGET,)
DIFFERENCES: Final = (("ets", "self_consistency"), ("self_consistency", "single"))
_MEASURES: Final = ("accuracy", "tokens", "seconds")
_CALIBRATION: Final = (32, 96)
_MAX_WIDTH: Final = 128.0
_TOLERANCE: Final = 0.05


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        problems: Test problems of each strategy.
        budgets: Mean generated tokens of a problem; the first one is the main budget.
        calibration: Validation problems of each round that corrects a width.
    """

    problems: int
    budgets: tuple[int, ...] = BUDGETS
    calibration: tuple[int, ...] = _CALIBRATION


@bench_command("quality")
def run(bench: Bench) -> None:
    """Search on word problems, and the bundled models by themselves."""
    asyncio.run(measure(bench, Settings(bench.n or 1000)))


async def measure(bench: Bench, settings: Settings) -> None:
    """Measure what is wanted, the main budget first."""
    plans = {budget: _wanted(bench, settings, budget) for budget in settings.budgets}
    saplings_wanted = [bench.wants(f"saplings.{name}") for name in _SAPLINGS]
    if not any([*saplings_wanted, *(any(plan.values()) for plan in plans.values())]):
        return
    async with open_saplings() as saplings:
        if any(saplings_wanted):
            await _measure_saplings(bench, saplings)
        for budget, plan in plans.items():
            if any(plan.values()) and not bench.out_of_time():
                await Comparison(bench, saplings, settings, budget).measure(plan)


def _name(measure: str, strategy: str, budget: int) -> str:
    return f"quality.sums.{measure}.{strategy}.b{budget}"


def _wanted(bench: Bench, settings: Settings, budget: int) -> Mapping[str, bool]:
    """By part of a comparison, whether any of its figures is wanted."""
    names = [_name(measure, strategy, budget) for measure in _MEASURES for strategy in STRATEGIES]
    names.append(f"quality.sums.token_gap.b{budget}")
    if budget == settings.budgets[0]:
        names += [f"quality.sums.z.{one}_minus_{other}" for one, other in DIFFERENCES]
    equal = [_name("accuracy_at_equal_seconds", strategy, budget) for strategy in SEARCHERS]
    is_main = budget == settings.budgets[0]
    return {
        "tokens": any([bench.wants(name) for name in names]),
        "seconds": is_main and any([bench.wants(name) for name in equal]),
    }


class Comparison:
    """All strategies at one budget."""

    def __init__(self, bench: Bench, saplings: Saplings, settings: Settings, budget: int) -> None:
        self._bench = bench
        self._settings = settings
        self._budget = budget
        is_main = budget == settings.budgets[0]
        self._problems = settings.problems if is_main else max(1, settings.problems // 4)
        self._validation = Lab(bench, saplings, "validation")
        self._test = Lab(bench, saplings, "test")
        self._contenders: dict[str, Contender] = {}
        self._rows: dict[str, Rows] = {}

    async def measure(self, parts: Mapping[str, bool]) -> None:
        """Calibrate, run, and put the figures; quietly ends when time runs out."""
        for strategy in STRATEGIES:
            contender = await self._calibrated(strategy)
            if contender is None:
                return
            self._contenders[strategy] = contender
            rows = await self._test.run(contender, range(self._problems))
            if rows is None:
                return
            self._rows[strategy] = rows
            self._put(strategy)
        self._put_differences()
        self._print()
        if parts["seconds"]:
            await self._at_equal_seconds()

    async def _calibrated(self, strategy: str) -> Contender | None:
        """The contender whose mean tokens on the validation split are the budget."""
        contender = Contender(strategy)
        if strategy == FLOOR:
            return contender
        sizes = self._settings.calibration
        one = await self._validation.run(Contender(FLOOR), range(sizes[-1]))
        if one is None:
            return None
        width = self._budget / float(one.tokens.mean())
        for size in sizes:
            contender = replace(contender, width=_rounded(width))
            rows = await self._validation.run(contender, range(size))
            if rows is None:
                return None
            mean = float(rows.tokens.mean())
            self._bench.say(f"b{self._budget} {strategy}({contender}): {mean:.0f} tokens")
            width = contender.width * self._budget / mean
        return replace(contender, width=_rounded(width))

    def _put(self, strategy: str) -> None:
        rows, n = self._rows[strategy], len(self._rows[strategy])
        accuracy = evaluate.share(float(rows.right.sum()), n)
        self._bench.put(
            _name("accuracy", strategy, self._budget),
            accuracy.value,
            unit="share",
            n=n,
            low=max(0.0, accuracy.low),
            high=accuracy.high,
            better="higher",
        )
        mean, half = float(rows.tokens.mean()), 1.96 * _standard_error(rows.tokens)
        name = _name("tokens", strategy, self._budget)
        ends = {"low": mean - half, "high": mean + half}
        self._bench.put(name, mean, unit="tokens", n=n, better="lower", **ends)
        # Completions come in bursts, so the times between them say nothing of the mean's spread.
        name = _name("seconds", strategy, self._budget)
        self._bench.put(name, float(rows.seconds.mean()), unit="s", n=n, better="lower")

    def _put_differences(self) -> None:
        n = self._problems
        means = [float(self._rows[strategy].tokens.mean()) for strategy in SEARCHERS]
        gap = max(abs(mean / self._budget - 1) for mean in means)
        name = f"quality.sums.token_gap.b{self._budget}"
        self._bench.put(name, gap, unit="share", n=n, better="lower")
        if gap > _TOLERANCE:
            self._bench.say(f"tokens are {gap:.1%} off the budget; equal means within 5 %")
        if self._budget != self._settings.budgets[0]:
            return
        for one, other in DIFFERENCES:
            z = paired_z(self._rows[one], self._rows[other])
            name = f"quality.sums.z.{one}_minus_{other}"
            self._bench.put(name, z, unit="standard errors", n=n, better="higher")

    async def _at_equal_seconds(self) -> None:
        """Everybody may take as long as the slowest; compared on the first eighth."""
        count = max(1, self._problems // 8)
        seconds = {name: float(self._rows[name].seconds.mean()) for name in SEARCHERS}
        slowest = max(seconds, key=seconds.__getitem__)
        for strategy in SEARCHERS:
            width = self._contenders[strategy].width * seconds[slowest] / seconds[strategy]
            contender = replace(self._contenders[strategy], width=_rounded(width))
            rows: Rows | None = self._rows[strategy].first(count)
            if strategy != slowest:
                rows = await self._test.run(contender, range(count))
            if rows is None:
                return
            spent = float(rows.seconds.mean())
            self._bench.say(f"equal seconds, {strategy}({contender}): {spent:.3f} s a problem")
            accuracy = evaluate.share(float(rows.right.sum()), count)
            self._bench.put(
                _name("accuracy_at_equal_seconds", strategy, self._budget),
                accuracy.value,
                unit="share",
                n=count,
                low=max(0.0, accuracy.low),
                high=accuracy.high,
                better="higher",
            )

    def _print(self) -> None:
        table = Table(title=f"word problems, {self._problems} a strategy, b{self._budget}")
        for column in ("strategy", "knobs", "accuracy", "± 95 %", "tokens", "seconds"):
            is_text = column in ("strategy", "knobs")
            table.add_column(column, justify="left" if is_text else "right")
        for strategy, rows in self._rows.items():
            accuracy = evaluate.share(float(rows.right.sum()), len(rows))
            half = (accuracy.high - accuracy.low) / 2
            table.add_row(
                strategy,
                str(self._contenders[strategy]),
                f"{accuracy.value:.3f}",
                f"{half:.3f}",
                f"{rows.tokens.mean():.0f}",
                f"{rows.seconds.mean():.3f}",
            )
        self._bench.console.print(table)


def paired_z(one: Rows, other: Rows) -> float:
    """Mean difference of right answers over its standard error; 0 where nothing differs."""
    difference = one.right - other.right
    error = _standard_error(difference)
    return float(difference.mean()) / error if error else 0.0


_SAPLINGS: Final = ("greedy", "pass32", "prm_auroc")


async def _measure_saplings(bench: Bench, saplings: Saplings) -> None:
    """The bundled models by themselves, on 400 problems unless ``--n`` says otherwise."""
    limited, n, seed = Limited(saplings), bench.n or 400, bench.seed
    measures: dict[str, Any] = {
        "greedy": lambda: evaluate.greedy_accuracy(limited.complete, n=n, seed=seed),
        "pass32": lambda: evaluate.pass_at(limited.complete, k=32, n=n, seed=seed),
        "prm_auroc": lambda: evaluate.step_auroc(limited.complete, limited.rewards, n=n, seed=seed),
    }
    for name, body in measures.items():
        if bench.wants(f"saplings.{name}") and not bench.out_of_time():
            got = await body()
            unit = "AUROC" if name == "prm_auroc" else "share"
            ends = {"low": got.low, "high": got.high}
            full = f"saplings.{name}"
            bench.put(full, got.value, unit=unit, n=got.n, better="higher", **ends)


def _rounded(width: float) -> float:
    return round(min(_MAX_WIDTH, max(1.0, width)), 2)


def _standard_error(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
