"""``bough bench engines``: branches on real engines, what bough adds to vLLM, its_hub beside it.

Run from the base environment; `.venv-vllm` and `.venv-its_hub` are made when they are missing, and
what belongs there runs there as a child process. The model is the bundled sapling, float32 on the
CPU, one compute thread in every process. ``--n`` is the number of problems put to each contender
of the comparison with its_hub (default 96, in three blocks).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

import httpx

from loadtests.bench.engines_overhead import ALONE, CROWD, Pair, take_turns
from loadtests.bench.engines_sharing import Growth, Shared
from loadtests.bench.figures import Bench, BenchError, bench_command
from loadtests.peers import its_hub, servers

_REPEATS: Final = 5
_PROBLEMS: Final = 96
_SHARING: Final = ("computed_over_bound", "computed_over_unique")
_PEER_FIGURES: Final = ("speedup", "accuracy_gain")


@bench_command("engines")
def run(bench: Bench) -> None:
    """Everything that needs an engine which is not bough's own."""
    try:
        _sharing_on_vllm(bench)
        _sharing_on_sglang(bench)
        _overhead(bench)
        _beside_its_hub(bench)
    except (servers.ServerFailed, subprocess.CalledProcessError, httpx.HTTPError) as err:
        raise BenchError(str(err)) from err


def _sharing_on_vllm(bench: Bench) -> None:
    if not _wants(bench, "engines.vllm", _SHARING):
        return
    servers.make_vllm()
    options = dict(servers.VLLM_OPTIONS)
    block = int(options["block_size"])
    growth = Growth("vllm", str(servers.GENERATOR_DIR), options, block, seed=bench.seed)
    put_sharing(bench, growth, grown_in(servers.VLLM_PYTHON, growth))


def _sharing_on_sglang(bench: Bench) -> None:
    """SGLang's radix cache knows single tokens; its figures are left out where it cannot run."""
    if not _wants(bench, "engines.sglang", _SHARING):
        return
    try:
        with servers.sglang() as url:
            growth = Growth("sglang", url, {}, block_tokens=1, seed=bench.seed)
            shared = grown_in(Path(sys.executable), growth)
    except servers.ServerFailed as err:
        bench.say(f"SGLang did not run: {err}")
        return
    put_sharing(bench, growth, shared)


def grown_in(python: Path, growth: Growth) -> Shared:
    """Measure in another environment.

    Raises:
        CalledProcessError: It failed; what it said was printed.
    """
    command = [str(python), "-m", "loadtests.bench.engines_sharing", json.dumps(asdict(growth))]
    environment = servers.bare_environment() | servers.vllm_environment()
    done = subprocess.run(
        command, cwd=servers.ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    # vLLM writes its log to the same place.
    (line,) = [one for one in done.stdout.splitlines() if one.startswith('{"sent"')]
    return Shared(**json.loads(line))


def put_sharing(bench: Bench, growth: Growth, shared: Shared) -> None:
    """Both ratios."""
    bench.say(
        f"{growth.kind}: {growth.branches} branches from {growth.prompt_tokens} tokens, "
        f"{growth.rounds} rounds: {shared.sent} prompt tokens sent, {shared.computed} computed, "
        f"{shared.unique} unique, bound {shared.bound}"
    )
    ratios = (shared.computed / shared.bound, shared.computed / shared.unique)
    for name, ratio in zip(_SHARING, ratios, strict=True):
        full = f"engines.{growth.kind}.{name}"
        bench.put(full, ratio, unit="ratio", n=growth.branches, better="lower")


def _overhead(bench: Bench) -> None:
    """One request at a time, then a crowd."""
    stem = "engines.vllm"
    for load in (ALONE, CROWD):
        ratio = f"{stem}.throughput_vs_bare.c{load.in_flight}"
        added = f"{stem}.added_p50_ms" + ("" if load is ALONE else f"_c{load.in_flight}")
        wanted = [bench.wants(name) for name in (ratio, added)]
        if not any(wanted) or bench.out_of_time():
            continue
        servers.make_vllm()
        pairs = take_turns(load, _REPEATS, bench.seed, bench.say, bench.out_of_time)
        if len(pairs) == _REPEATS:
            put_overhead(bench, added, ratio, pairs)


def put_overhead(bench: Bench, added: str, ratio: str, pairs: Sequence[Pair]) -> None:
    """Medians over the blocks, with the extremes."""
    n = sum(len(pair.bare.latencies) for pair in pairs)
    found = [pair.added_ms for pair in pairs]
    ends = {"low": min(found), "high": max(found)}
    bench.put(added, median(found), unit="ms", n=n, better="lower", **ends)
    found = [pair.throughput_ratio for pair in pairs]
    ends = {"low": min(found), "high": max(found)}
    bench.put(ratio, median(found), unit="ratio", n=n, better="higher", **ends)


def _beside_its_hub(bench: Bench) -> None:
    tasks = [task for task in its_hub.TASKS if _wants(bench, _peer_stem(task), _PEER_FIGURES)]
    if not tasks or bench.out_of_time():
        return
    plan = its_hub.Plan(problems=bench.n or _PROBLEMS, seed=bench.seed, tasks=tuple(tasks))
    found = its_hub.compare(plan, bench.say)
    for task in tasks:
        bench.console.print(its_hub.table_of(found, task))
        put_comparison(bench, found, task)


def put_comparison(bench: Bench, found: its_hub.Comparison, task: str) -> None:
    """Speed-up by blocks with the extremes, accuracy paired with its 95 % interval."""
    other, stem, n = found.versus(task), _peer_stem(task), found.plan.problems
    ends = {"low": other.slowest, "high": other.fastest}
    bench.put(f"{stem}.speedup", other.speedup, unit="ratio", n=n, better="higher", **ends)
    half = 1.96 * other.error
    ends = {"low": other.gain - half, "high": other.gain + half}
    bench.put(f"{stem}.accuracy_gain", other.gain, unit="share", n=n, better="higher", **ends)
    path = bench.out / "engines.its_hub.json"
    path.write_text(json.dumps(found.to_json(), indent=2) + "\n")


def _peer_stem(task: str) -> str:
    return f"peers.its_hub.{task}"


def _wants(bench: Bench, stem: str, names: Sequence[str]) -> bool:
    return any([bench.wants(f"{stem}.{name}") for name in names])
