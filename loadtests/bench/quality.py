"""``bough bench quality``: what search buys on held-out problems, at equal cost.

Every strategy is brought to the same mean of generated tokens, its *budget*, by its width alone,
on the validation split; a strategy without a width, such as `single`, is measured at whatever it
costs. Then all answer the same test problems with the same seeds, so that differences are paired.
Tokens are the generator's, whatever became of them; the judge's come on top and show in the
seconds, which are wall time per problem with 24 problems in flight.

At equal wall clock the searches are run again, on the first eighth of the problems, with their
widths raised in the ratio of seconds. ``--n`` is the number of problems of a seed (default 1000); a
budget beside the main one, the first, gets a quarter of them.

``--problems`` takes a file of questions in place of a bundled task, ``--config`` the settings of a
server, whose models and reward models may be of any kind. Results are ``quality.json`` and
``quality.html``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.bench.comparison import Comparison, figure_names
from loadtests.bench.figures import Bench, bench_command, hardware, revision
from loadtests.bench.quality_page import Point, write_page
from loadtests.bench.quality_settings import STRATEGIES, Settings
from loadtests.bench.saplings import Limited, Saplings
from models import evaluate
from models.tasks import TASKS, sums

_SHARE: Final = 4
"""Of the problems, for budgets beside the main one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only this bench has."""
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="NAME[,NAME...]")
    parser.add_argument(
        "--budgets", default="800", help="mean generated tokens of a problem, N[,N...], main first"
    )
    parser.add_argument("--seeds", default="", help="N[,N...]; --seed alone by default")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--task", default=sums.NAME, choices=sorted(TASKS), help="a bundled task")
    what.add_argument("--problems", type=Path, help="a JSONL file of questions and answers")
    parser.add_argument("--config", type=Path, help="settings of a server with other models")
    parser.add_argument("--model", help="which model of --config")
    parser.add_argument("--reward-model", help="which reward model of --config")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer")


@bench_command("quality", add_arguments)
def run(bench: Bench) -> None:
    """Search on held-out problems, and the bundled models by themselves."""
    asyncio.run(measure(bench, settings_of(bench)))


def settings_of(bench: Bench) -> Settings:
    """The settings that the command line asks for."""
    extra = bench.extra
    file: Path | None = extra.get("problems")
    return Settings(
        bench.n or 1000,
        strategies=tuple(_listed(extra["strategies"])),
        budgets=tuple(int(one) for one in _listed(extra["budgets"])),
        seeds=tuple(int(one) for one in _listed(extra["seeds"])) or (bench.seed,),
        task=extra["task"] if file is None else _named(file),
        file=file,
        config=extra.get("config"),
        model=extra.get("model"),
        judge=extra.get("reward_model"),
        max_tokens=extra["max_tokens"],
    )


async def measure(bench: Bench, settings: Settings) -> None:
    """Measure what is wanted, the main budget first, and write the page."""
    wanted = [
        budget
        for budget in settings.budgets
        if any([bench.wants(name) for name in figure_names(settings, budget)])
    ]
    bundled = [name for name in _SAPLINGS if settings.config is None and settings.file is None]
    saplings_wanted = [bench.wants(f"saplings.{name}") for name in bundled]
    if not wanted and not any(saplings_wanted):
        return
    points: list[Point] = []
    async with settings.opened() as saplings:
        if any(saplings_wanted):
            await _measure_saplings(bench, saplings)
        for budget in wanted:
            if not bench.out_of_time():
                is_main = budget == settings.budgets[0]
                count = settings.problems if is_main else max(1, settings.problems // _SHARE)
                points += await Comparison(bench, saplings, settings, budget, count).measure()
    if points:
        write_page(
            bench.out / "quality.html",
            points,
            title=f"bough bench quality: {settings.task}",
            baseline=next((one.strategy for one in points if one.gain is None), "nothing"),
            about=_about(settings),
        )
        bench.say(f"written to {bench.out / 'quality.html'}")


def _about(settings: Settings) -> Mapping[str, Any]:
    return {
        "revision": revision(),
        "seeds": ", ".join(map(str, settings.seeds)),
        "problems": f"{settings.problems} a seed, {settings.task}, test split",
        "models": settings.config or "bundled",
        **{name: str(value) for name, value in hardware().items()},
    }


def _listed(text: str) -> Sequence[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _named(file: Path) -> str:
    """A name for figures: the file's, with nothing in it that globs or dots would trip over."""
    return "".join(char if char.isalnum() else "_" for char in file.stem.lower())


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
            unit = "AUROC" if name == "prm_auroc" else "share"
            bench.put_measured(f"saplings.{name}", await body(), unit=unit, better="higher")
