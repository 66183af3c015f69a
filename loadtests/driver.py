"""An open-loop load driver: requests go out when they are due, whether or not earlier ones ended.

    python -m loadtests.driver --rate 4 --duration-s 30 --mix single=0.5,ets=0.5 --json out.json

Without ``--url`` it starts a server of its own (arguments after ``--`` go to it) and ends it. It
speaks HTTP only and always asks for no response cache. It ends by itself: after the last arrival it
waits for what is under way, for ``--grace-s`` at most, and counts the rest as incomplete.

What this does not do: closed loops (fixed concurrency), sweeps over rates, checking of answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from loadtests import arrivals, report
from loadtests.exchange import Exchange
from loadtests.measure import (
    PERCENTILES,
    Record,
    Summary,
    duration_of,
    summarize_by_strategy,
)
from loadtests.own_server import ServerDidNotStart, own_server
from loadtests.plan import Plan, PlanError, check_target, load_prompts, parse_mix, parse_params

SCHEMA_VERSION: Final = 1
CLIENT_BOUND_SHARE: Final = 0.02
"""Above this share of the median TTFT, the driver's own lateness is part of what was measured."""


async def drive(plan: Plan, client: httpx.AsyncClient) -> list[Record]:
    """Send all of a plan's requests when they are due; one record each, in order of arrival.

    The client must not limit connections, or requests would wait for each other.
    """
    started = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - started

    exchanges: list[Exchange] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for asked in plan.requests():
            await asyncio.sleep(max(0.0, asked.scheduled_s - now()))
            exchange = Exchange(asked, now)
            exchanges.append(exchange)
            tasks.append(asyncio.create_task(exchange.run(client)))
        if tasks:
            await asyncio.wait(tasks, timeout=plan.grace_s)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [exchange.record() for exchange in exchanges]


def open_client(url: str) -> httpx.AsyncClient:
    """A client without limits and without the environment's proxies."""
    return httpx.AsyncClient(
        base_url=url,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=10.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
    )


def result_of(plan: Plan, records: Sequence[Record], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a run found, ready for JSON: `about`, `duration_s`, `summary`, `requests`."""
    duration_s = duration_of(records)
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "model": plan.model,
        "mix": dict(plan.mix),
        "params": {name: dict(params) for name, params in plan.params.items()},
        "options": dict(plan.options),
        "seed": plan.seed,
        "duration_s": duration_s,
        "summary": summarize_by_strategy(records, duration_s),
        "requests": [asdict(record) for record in records],
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the summary as a table, then causes of errors and a warning where one is due."""
    table = Table(title=f"{result['model']} at {result['url']}, {result['duration_s']:.1f} s")
    for name in ("strategy", "n", "ok", "errors", "incomplete"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for name in ("TTFT ms", "TPOT ms", "E2E ms"):
        table.add_column(f"{name}\np50 / p90 / p95 / p99", justify="right")
    for name in ("requests/s", "answer tok/s", "all tok/s"):
        table.add_column(name, justify="right")
    for strategy, summary in result["summary"].items():
        counts = [str(summary[key]) for key in ("n", "ok", "errors", "incomplete")]
        times = [_times(summary, name) for name in ("ttft_s", "tpot_s", "latency_s")]
        keys = ("requests_per_s", "answer_tokens_per_s", "generated_tokens_per_s")
        rates = ["-" if summary[key] is None else f"{summary[key]:.2f}" for key in keys]
        style = "bold" if strategy == "total" else ""
        table.add_row(strategy, *counts, *times, *rates, style=style)
    console.print(table)
    total = result["summary"]["total"]
    for cause, count in total["errors_by_code"].items():
        console.print(f"{count} errors: {cause}", style="red", markup=False)
    if is_client_bound(total):
        console.print(
            f"client-bound: requests left up to {total['queue_s_p99'] * 1000:.1f} ms late (p99); "
            "lower the rate or use a faster machine for the driver",
            style="yellow",
        )


def is_client_bound(summary: Summary) -> bool:
    """Whether the driver's own lateness (p99) is a visible part of the median TTFT."""
    late_s, first_s = summary.get("queue_s_p99"), summary.get("ttft_s_p50")
    return late_s is not None and first_s is not None and late_s > CLIENT_BOUND_SHARE * first_s


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when at least one request completed, 1 when none, 2 for bad input."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, serve = _split(given)
    args = _parser().parse_args(own)
    try:
        plan = _plan(args)
        with _target(args, serve) as url:
            result = asyncio.run(_run(plan, url, _about(args, url, given)))
    except (PlanError, arrivals.ArrivalsError, ServerDidNotStart) as err:
        print(f"loadtests.driver: {err}", file=sys.stderr)
        return 2
    show(result, Console(width=None if sys.stdout.isatty() else 190))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(report.render(result), encoding="utf-8")
    return 0 if result["summary"]["total"]["ok"] else 1


def _plan(args: argparse.Namespace) -> Plan:
    times_s = arrivals.schedule(
        args.arrivals,
        args.rate,
        seed=args.seed,
        duration_s=args.duration_s,
        requests=args.requests,
        shape=args.shape,
    )
    given = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    return Plan(
        times_s,
        parse_mix(args.mix),
        load_prompts(args.prompts, args.seed, len(times_s)),
        args.model or "",
        args.seed,
        parse_params(args.params),
        {name: value for name, value in given.items() if value is not None},
        args.grace_s,
    )


async def _run(plan: Plan, url: str, about: Mapping[str, Any]) -> dict[str, Any]:
    async with open_client(url) as client:
        plan = replace(plan, model=plan.model or await _first_model(client))
        return result_of(plan, await drive(plan, client), about)


def _about(args: argparse.Namespace, url: str, given: Sequence[str]) -> dict[str, Any]:
    return {
        "url": url,
        "command": f"python -m loadtests.driver {shlex.join(given)}",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "loop": "open",
        "arrivals": {"kind": args.arrivals, "rate": args.rate, "shape": args.shape},
    }


async def _first_model(client: httpx.AsyncClient) -> str:
    try:
        reply = await client.get("/v1/models", timeout=30)
        return str(reply.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as err:
        raise PlanError(f"no model found at {client.base_url}: {err}; name one by --model") from err


@contextlib.contextmanager
def _target(args: argparse.Namespace, serve: Sequence[str]) -> Iterator[str]:
    if args.url is not None and serve:
        raise PlanError("arguments after -- are for an own server: leave --url out")
    if args.url is not None:
        check_target(args.url, args.allow_remote)
        yield args.url.rstrip("/")
    else:
        with own_server(serve) as url:
            yield url


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and what follows the first ``--``."""
    if "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]


def _times(summary: Summary, name: str) -> str:
    found = [summary.get(f"{name}_p{percent}") for percent in PERCENTILES]
    return " / ".join("-" if time_s is None else f"{time_s * 1000:.1f}" for time_s in found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.driver",
        description="Load a bough server in an open loop.",
        epilog="Arguments after -- go to the server that is started when there is no --url.",
    )
    add = parser.add_argument
    add("--url", help="a running server, such as http://127.0.0.1:8000")
    add("--allow-remote", action="store_true", help="load a machine other than this one")
    add("--model", help="model id (default: the server's first)")
    add("--mix", default="single", help="NAME=SHARE,… of strategies (default: single)")
    add("--params", action="append", default=[], metavar="STRATEGY=JSON", help="its parameters")
    add("--rate", type=float, default=2.0, help="mean arrivals a second (default: 2)")
    add("--arrivals", choices=arrivals.KINDS, default="poisson", help="default: poisson")
    add("--shape", type=float, default=0.25, help="of gamma arrivals; below 1 is bursty")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--duration-s", type=float, help="send for so many seconds")
    length.add_argument("--requests", type=int, help="send so many")
    add("--grace-s", type=float, default=60.0, help="wait after the last arrival (default: 60)")
    add("--seed", type=int, default=0, help="of arrivals, mix, prompts and requests")
    add("--prompts", type=Path, metavar="FILE", help="JSON lines with messages")
    add("--temperature", type=float, help="of every request")
    add("--max-tokens", type=int, help="of every request")
    add("--json", type=Path, metavar="OUT", help="write everything measured")
    add("--html", type=Path, metavar="OUT", help="write a report to look at")
    return parser


if __name__ == "__main__":
    sys.exit(main())
