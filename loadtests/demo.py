"""What ``make demo`` shows: a server with the bundled models, and every strategy at work on it.

    python -m loadtests.demo [--problems N] [--seed S]

It starts ``bough serve`` on a free port of this machine, puts held-out word problems to it through
the OpenAI SDK, a strategy after the other, checks the answers exactly, prints a table, and ends
the server. What the first model does not carry is asked of one that does, with that one's task
(trees of denoising rollouts of the diffusion model). Exit code 0 means that everything was
answered, right or wrong, that no KV page stayed claimed, and that nothing is left running.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.table import Table

from loadtests.own_server import ServerDidNotStart, own_server
from models.tasks import TASKS, AnyProblem, Task, sums

_MODEL: Final = "sapling-sums"
_NOT_CARRIED: Final = ("unsupported_by_engine", "reward_model_required")
"""What a strategy is refused with that this model, or its judge, lacks something for."""
_CLAIMED: Final = re.compile(r'^bough_kv_pages\{[^}]*state="claimed"[^}]*\} ([0-9.e+]+)$', re.M)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass
class Row:
    """What one strategy did on all problems.

    Attributes:
        model: Which model was asked.
    """

    model: str = _MODEL
    right: int = 0
    answered: int = 0
    generated_tokens: int = 0
    unique_tokens: int = 0
    logical_tokens: int = 0
    seconds: float = 0.0
    refused: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.demo", description=__doc__)
    parser.add_argument("--problems", type=int, default=20, help="problems for each strategy")
    parser.add_argument("--seed", type=int, default=7, help="seed of problems and answers")
    given = parser.parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=100)
    try:
        with own_server(is_apart=True) as url:
            console.print(f"serving {_MODEL} on {url}")
            rows = asyncio.run(ask_all(url, _MODEL, given.problems, given.seed, console))
    except (DemoError, ServerDidNotStart, httpx.HTTPError) as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    console.print(table_of(rows, given.problems))
    return 0


async def ask_all(
    url: str, model: str, problems: int, seed: int, console: Console
) -> dict[str, Row]:
    """Every listed strategy on the same problems, one strategy at a time."""
    rows: dict[str, Row] = {}
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        listed = (await http.get("/v1/strategies")).raise_for_status().json()["data"]
        models = (await http.get("/v1/models")).raise_for_status().json()["data"]
        tasks = {one["id"]: one["bough"]["task"] for one in models}
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for entry in listed:
                strategy, carriers = entry["name"], entry["models"]
                able = [one for one in carriers if tasks[one] in TASKS]
                asked = model if model in carriers or not able else able[0]
                task = tasks[asked] if asked != model else sums.NAME
                with console.status(f"{strategy} …"):
                    rows[strategy] = await ask_one(
                        client, asked, strategy, TASKS[task], problems, seed
                    )
        await _check_claims(http)
    return rows


async def ask_one(
    client: AsyncOpenAI, model: str, strategy: str, task: Task, problems: int, seed: int
) -> Row:
    """All problems at once under one strategy.

    A strategy that this model and its judge cannot carry is a row that says so.
    """
    row = Row(model)
    begin = time.perf_counter()
    asked = [
        _answer(client, strategy, task, task.problem("test", seed, index), seed + index, row)
        for index in range(problems)
    ]
    failures = [one for one in await asyncio.gather(*asked, return_exceptions=True) if one]
    for failure in failures:
        if not isinstance(failure, OpenAIError):
            raise failure
        if getattr(failure, "code", None) not in _NOT_CARRIED:
            raise DemoError(f"{strategy}: {failure}") from failure
        row.refused = True
    row.seconds = time.perf_counter() - begin
    return row


def table_of(rows: dict[str, Row], problems: int) -> Table:
    """The rows as a table."""
    names = [row.model for row in rows.values()]
    usual = max(names, key=names.count, default=_MODEL)
    table = Table(title=f"{problems} held-out problems, {usual} where no other model is named")
    table.add_column("strategy")
    for column in ("answers right", "generated tokens", "unique / logical KV", "seconds"):
        table.add_column(column, justify="right")
    for strategy, row in rows.items():
        name = strategy if row.model == usual else f"{strategy} ({row.model})"
        if row.refused:
            table.add_row(name, "not on this model", "", "", "")
            continue
        shared = row.unique_tokens / row.logical_tokens if row.logical_tokens else 1.0
        right = f"{row.right} of {row.answered}"
        tokens = str(row.generated_tokens)
        table.add_row(name, right, tokens, f"{shared:.2f}", f"{row.seconds:.1f}")
    return table


async def _answer(
    client: AsyncOpenAI, strategy: str, task: Task, problem: AnyProblem, seed: int, row: Row
) -> None:
    messages: Any = task.messages(problem)
    longest: dict[str, Any] = {"max_completion_tokens": 256} if task.name == sums.NAME else {}
    reply = await client.chat.completions.create(
        model=row.model,
        messages=messages,
        **longest,
        seed=seed,
        extra_body={"bough": {"strategy": strategy}},
    )
    about: dict[str, Any] = (reply.model_extra or {})["bough"]
    row.answered += 1
    row.right += task.is_right(problem, reply.choices[0].message.content or "")
    row.generated_tokens += about["spent"]["generated_tokens"]
    row.unique_tokens += about["tree"]["unique_tokens"]
    row.logical_tokens += about["tree"]["logical_tokens"]


async def _check_claims(http: httpx.AsyncClient) -> None:
    """No page may be claimed when nothing runs."""
    claimed: list[float] = []
    for _ in range(50):
        text = (await http.get("/metrics")).raise_for_status().text
        claimed = [float(value) for value in _CLAIMED.findall(text)]
        if claimed and not any(claimed):
            return
        await asyncio.sleep(0.1)
    raise DemoError(f"KV pages claimed while nothing runs, by engine: {claimed or 'no metric'}")


if __name__ == "__main__":
    sys.exit(main())
