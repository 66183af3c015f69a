"""its_hub 1.2.0 and bough side by side on the bundled sapling, on one machine.

    python -m loadtests.peers.its_hub [--problems N] [--repeats R] [--seed S] [--width W] …

Three contenders answer the same held-out word problems: its_hub in front of a bare vLLM server,
bough with vLLM in its process, and bough with its embedded engine. Self-consistency goes over HTTP
for all; its_hub offers its particle filter as a library only, bough's goes over HTTP. The two vLLMs
have the same settings, the judge is the same object on the same runtime, samples, temperature and
longest answer are the same. Contenders take turns, block by block, so that only one is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
from rich.console import Console
from rich.table import Table

from loadtests.peers import servers
from loadtests.peers.blocks import Block, Row, Versus, are_right, prompt_of, versus, word_problems
from models.evaluate import share

VERSION: Final = "1.2.0"
ENVIRONMENT: Final = servers.ROOT / ".venv-its_hub"
PEER, VLLM, EMBEDDED = "its_hub", "bough on vLLM", "bough embedded"
CONTENDERS: Final = (PEER, VLLM, EMBEDDED)
TASKS: Final = ("self_consistency", "particle_filtering")
_STRATEGY: Final = {"self_consistency": "self_consistency", "particle_filtering": "particle_filter"}
_ANSWER: Final = r"The answer is\s*(-?[0-9]+)"
_WARM_UP: Final = 1_000_000  # a seed apart, so that no problem of the comparison is seen before

Solve: TypeAlias = Callable[[Block], Awaitable[tuple[float, list[str]]]]
"""Seconds and answers of a block."""


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        problems: Of every contender and task, over all blocks.
        repeats: Blocks.
        seed: Of the problems and of what can be seeded.
        width: Samples or particles.
        in_flight: Problems at a time; its_hub lets no more than 32 requests through at once.
        tasks: Of `TASKS`.
        contenders: Of `CONTENDERS`.
    """

    problems: int = 96
    repeats: int = 3
    seed: int = 7
    width: int = 8
    in_flight: int = 4
    tasks: tuple[str, ...] = TASKS
    contenders: tuple[str, ...] = CONTENDERS


@dataclass
class Comparison:
    """Rows by task and contender."""

    plan: Plan
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)

    def versus(self, task: str, contender: str = VLLM) -> Versus:
        """A contender of ours against its_hub."""
        return versus(self.rows[task][contender], self.rows[task][PEER])

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        ours = [name for name in self.plan.contenders if name != PEER]
        against = {
            task: {name: asdict(self.versus(task, name)) for name in ours}
            for task in self.rows
            if PEER in self.rows[task]
        }
        rows = {
            task: {name: asdict(row) for name, row in found.items()}
            for task, found in self.rows.items()
        }
        return {"plan": asdict(self.plan), "rows": rows, "versus_its_hub": against}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print a table; the exit code."""
    plan, out = _parsed(argv)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    try:
        found = compare(plan, console.print)
    except (servers.ServerFailed, subprocess.CalledProcessError, httpx.HTTPError) as err:
        print(f"its_hub: {err}", file=sys.stderr)
        return 1
    for task in plan.tasks:
        console.print(table_of(found, task))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found.to_json(), indent=2) + "\n")
    return 0


def compare(plan: Plan, say: Callable[[str], object]) -> Comparison:
    """Start everything, let the contenders take turns, end everything.

    Raises:
        ServerFailed: A server did not start.
        CalledProcessError: An environment could not be made.
    """
    servers.make_vllm()
    make_environment()
    with ExitStack() as stack:
        urls = {}
        if PEER in plan.contenders:
            urls[PEER] = stack.enter_context(servers.bare_vllm(is_capped=True))
        if VLLM in plan.contenders:
            urls[VLLM] = stack.enter_context(servers.bough("vllm"))
        if EMBEDDED in plan.contenders:
            urls[EMBEDDED] = stack.enter_context(servers.bough("embedded"))
        say(f"serving: {', '.join(urls)}")
        return asyncio.run(_take_turns(plan, urls, say))


def make_environment() -> None:
    """Install its_hub in `.venv-its_hub` unless it is there; torch is that of this environment."""
    done = ENVIRONMENT / f"its_hub-{VERSION}.ready"
    if done.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"its_hub[lm,iaas]=={VERSION}"], check=True)
    (found,) = (ENVIRONMENT / "lib").glob("python3.*/site-packages")
    (ours,) = (Path(sys.prefix) / "lib").glob("python3.*/site-packages")
    # Behind its own packages: what the judge needs beside them, torch above all.
    (found / "bough_base.pth").write_text(f"{ours}\n")
    done.touch()


async def _take_turns(
    plan: Plan, urls: Mapping[str, str], say: Callable[[str], object]
) -> Comparison:
    found = Comparison(plan, {task: {name: Row() for name in urls} for task in plan.tasks})
    problems = word_problems(plan.problems, plan.seed)
    warm_up = [prompt_of(one) for one in word_problems(plan.in_flight, plan.seed + _WARM_UP)]
    size = -(-len(problems) // plan.repeats)
    async with AsyncExitStack() as stack:
        for task in plan.tasks:
            solvers = {
                name: await stack.enter_async_context(_solver(name, task, url))
                for name, url in urls.items()
            }
            for solve in solvers.values():
                await solve(_block(plan, warm_up, _WARM_UP))
            for repeat in range(plan.repeats):
                block = problems[repeat * size : (repeat + 1) * size]
                order = list(solvers)
                for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
                    prompts = [prompt_of(one) for one in block]
                    seconds, contents = await solvers[name](_block(plan, prompts, repeat))
                    right = are_right(block, contents)
                    found.rows[task][name].seconds.append(seconds)
                    found.rows[task][name].right += right
                    say(f"{task} {repeat}: {name}: {seconds:.2f} s, {sum(right)}/{len(right)}")
    return found


def _block(plan: Plan, prompts: Sequence[str], repeat: int) -> Block:
    return Block(
        prompts=tuple(prompts),
        width=plan.width,
        in_flight=plan.in_flight,
        temperature=1.0,
        max_steps=40,
        seed=plan.seed * 1000 + repeat,
    )


@asynccontextmanager
async def _solver(contender: str, task: str, url: str) -> AsyncIterator[Solve]:
    """What solves blocks of a task for a contender."""
    if contender == PEER and task == "particle_filtering":
        async with _library(url) as solve:
            yield solve
        return
    with ExitStack() as stack:
        if contender == PEER:
            url = await _gateway(stack, url)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=url, timeout=300, limits=limits, trust_env=False
        ) as http:
            body = _gateway_body if contender == PEER else bough_body(_STRATEGY[task])
            yield lambda block: over_http(http, body, block)


async def _gateway(stack: ExitStack, upstream: str) -> str:
    """its_hub's own server, set to vote on the number in the closing line."""
    port = servers.free_port()
    command = [str(ENVIRONMENT / "bin" / "its-iaas"), "--port", str(port), "--log-level", "WARNING"]
    url = stack.enter_context(servers.serving(command, port, "/v1/models"))
    settings = {
        "endpoint": f"{upstream}/v1",
        "api_key": "none",
        "model": servers.GENERATOR,
        "alg": "self-consistency",
        "regex_patterns": [_ANSWER],
    }
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        (await http.post("/configure", json=settings)).raise_for_status()
    return url


@asynccontextmanager
async def _library(url: str) -> AsyncIterator[Solve]:
    """its_hub in a process of its own, spoken to in lines of JSON."""
    process = await asyncio.create_subprocess_exec(
        str(ENVIRONMENT / "bin" / "python"),
        "-m",
        "loadtests.peers.its_hub_library",
        url,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=servers.ROOT,
        env=servers.bare_environment() | servers.vllm_environment(),
        limit=1 << 26,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    writer, reader = process.stdin, process.stdout

    async def solve(block: Block) -> tuple[float, list[str]]:
        writer.write(f"{block.to_json()}\n".encode())
        line = await reader.readline()
        if not line:
            raise servers.ServerFailed(f"its_hub ended with status {await process.wait()}")
        found = json.loads(line)
        return found["seconds"], found["contents"]

    try:
        yield solve
    finally:
        writer.close()
        await process.wait()


Body: TypeAlias = Callable[[Block, int], dict[str, Any]]


def _gateway_body(block: Block, index: int) -> dict[str, Any]:
    """What its_hub's server reads; it drops `temperature` and `max_tokens` of a request."""
    messages = [{"role": "user", "content": block.prompts[index]}]
    return {"model": servers.GENERATOR, "messages": messages, "budget": block.width}


def bough_body(strategy: str) -> Body:
    """The requests of a strategy, as bough's wire has them."""

    def body(block: Block, index: int) -> dict[str, Any]:
        params: dict[str, Any] = {"width": block.width}
        if strategy == "particle_filter":
            params["max_depth"] = block.max_steps
        return {
            "model": servers.GENERATOR,
            "messages": [{"role": "user", "content": block.prompts[index]}],
            "temperature": block.temperature,
            "max_completion_tokens": servers.MAX_TOKENS,
            "seed": block.seed * 100_000 + index,
            "bough": {"strategy": strategy, "params": params, "cache": False},
        }

    return body


async def over_http(http: httpx.AsyncClient, body: Body, block: Block) -> tuple[float, list[str]]:
    """Ask for a block: seconds and contents.

    Raises:
        ServerFailed: A request was not answered with 200.
    """
    gate = asyncio.Semaphore(block.in_flight)

    async def one(index: int) -> str:
        async with gate:
            reply = await http.post("/v1/chat/completions", json=body(block, index))
        if reply.status_code != 200:
            raise servers.ServerFailed(f"{reply.url}: {reply.status_code}: {reply.text[:500]}")
        return str(reply.json()["choices"][0]["message"]["content"])

    begin = time.perf_counter()
    contents = await asyncio.gather(*map(one, range(len(block.prompts))))
    return time.perf_counter() - begin, contents


def table_of(found: Comparison, task: str) -> Table:
    """One task as a table."""
    plan = found.plan
    title = f"{task}, {plan.width} each, {plan.problems} problems, {plan.in_flight} at a time"
    table = Table(title=f"{title}, seed {plan.seed}")
    for column in ("contender", "right", "95 %", "s a problem", "speed-up", "accuracy gained"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in found.rows[task].items():
        right = share(sum(row.right), len(row.right))
        cells = [name, f"{right.value:.3f}", f"{right.low:.3f} to {right.high:.3f}"]
        cells.append(f"{sum(row.seconds) / len(row.right):.3f}")
        if name != PEER and PEER in found.rows[task]:
            other = found.versus(task, name)
            cells.append(f"{other.speedup:.2f} ({other.slowest:.2f} to {other.fastest:.2f})")
            cells.append(f"{other.gain:+.3f} ± {1.96 * other.error:.3f}")
        table.add_row(*cells)
    return table


def _parsed(argv: Sequence[str] | None) -> tuple[Plan, Path | None]:
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers.its_hub")
    for name in ("problems", "repeats", "seed", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--in-flight", type=int, default=default.in_flight)
    parser.add_argument("--task", choices=TASKS, action="append", help="only this one")
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    given = parser.parse_args(argv)
    plan = Plan(
        problems=given.problems,
        repeats=given.repeats,
        seed=given.seed,
        width=given.width,
        in_flight=given.in_flight,
        tasks=tuple(given.task or TASKS),
    )
    return plan, given.json


if __name__ == "__main__":
    sys.exit(main())
