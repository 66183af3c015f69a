"""``bough bench drafts``: lossless? how many tokens accepted a step? how many tokens a second?

Speed is `adaptive` over plain decoding in one engine that has served 24 answers of each workload
before (`drafts_speed`); "sapling" is the bundled generator, the other one its widening to 53
million parameters (`drafts_widen`), both in float32, in which drafting changes no answer. The
widened one at batch 1 follows in bfloat16, named so: many rows cost little more than one there.
Acceptance is that of all drafters on the sapling with the same 16 nodes a step (`drafts_exact`).
``--n`` is the number of repeats of a speed-up (default 7), and caps samples elsewhere.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.embedded.compute import compute_thread
from engines.embedded.engine import EmbeddedEngine, open_engine
from loadtests.bench import drafts_chi2, drafts_exact, drafts_vllm
from loadtests.bench.drafts_speed import CELLS, Cell, Cells, worst_of
from loadtests.bench.drafts_widen import write_widened
from loadtests.bench.drafts_workloads import WORKLOADS
from loadtests.bench.figures import Bench, BenchError, bench_command
from loadtests.bench.saplings import GENERATOR
from loadtests.peers import servers
from models.evaluate import Measured
from models.registry import bundled

REPEATS: Final = 7
STEMS: Final[Mapping[str, str]] = {"wide": "drafts.speedup", "sapling": "drafts.sapling.speedup"}
"""Of the figures of each model's cells."""
_BFLOAT16: Final = "drafts.bfloat16.speedup"
_ON_VLLM: Final = ("adaptive", "ngram", "suffix")


@bench_command("drafts")
def run(bench: Bench) -> None:
    """Everything that concerns drafters."""
    if GENERATOR not in bundled("generator"):
        raise BenchError(f"{GENERATOR} not found in models/; run `make models`")
    asyncio.run(_on_the_sapling(bench))
    _chi2(bench)
    _on_vllm(bench)
    _speed(bench)


def _open(directory: Path, dtype: str) -> EmbeddedEngine:
    options: dict[str, Any] = {"device": "cpu", "dtype": dtype}
    return open_engine(directory.name, str(directory), options)


async def _on_the_sapling(bench: Bench) -> None:
    wanted = [
        (drafter, workload)
        for workload in WORKLOADS
        for drafter in drafts_exact.DRAFTERS
        if bench.wants(f"drafts.accepted.{drafter}.{workload.name}")
    ]
    mismatches = bench.wants("drafts.greedy_mismatches")
    for drafter, workload in wanted:
        if bench.out_of_time():
            return
        # An engine of its own, so that no drafter has served other workloads.
        engine = _open(bundled("generator")[GENERATOR], "float32")
        try:
            await drafts_exact.put_accepted(bench, engine, drafter, workload)
        finally:
            await engine.aclose()
    if mismatches and not bench.out_of_time():
        engine = _open(bundled("generator")[GENERATOR], "float32")
        try:
            await drafts_exact.put_mismatches(bench, engine)
        finally:
            await engine.aclose()


def _chi2(bench: Bench) -> None:
    names = ("drafts.chi2_p", "drafts.chi2_p_published_rule")
    if any([bench.wants(name) for name in names]) and not bench.out_of_time():
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(drafts_chi2.put(bench, Path(folder)))


def _on_vllm(bench: Bench) -> None:
    names = [f"drafts.vllm.{name}.{what}" for name in _ON_VLLM for what in ("accepted", "speedup")]
    if not any([bench.wants(name) for name in names]) or bench.out_of_time():
        return
    plan = drafts_vllm.Plan(prompts=bench.at_most(48), seed=bench.seed)
    try:
        servers.make_vllm()
        found = drafts_vllm.measured_in(servers.VLLM_PYTHON, plan)
    except (servers.ServerFailed, subprocess.CalledProcessError) as err:
        raise BenchError(str(err)) from err
    for name, why in found.missing.items():
        bench.say(f"{name} did not start on vLLM: {why}")
    plain = found.outcomes[drafts_vllm.PLAIN].tokens_per_s
    for name in _ON_VLLM:
        if name in found.outcomes:
            one, stem = found.outcomes[name], f"drafts.vllm.{name}"
            n = plan.prompts
            bench.put(
                f"{stem}.accepted", one.accepted_per_step, unit="tokens", n=n, better="higher"
            )
            ratio = one.tokens_per_s / plain
            bench.put(f"{stem}.speedup", ratio, unit="ratio", n=n, better="higher")


def _speed(bench: Bench) -> None:
    """Both models; the cell that gained least, until its interval is narrow; then bfloat16."""
    for model, stem in STEMS.items():
        _wanted_cells(bench, model, stem, CELLS)
    if bench.wants("drafts.worst_speedup"):
        _worst(bench)
    alone = [cell for cell in CELLS if cell.batch == 1]
    _wanted_cells(bench, "wide", _BFLOAT16, alone, dtype="bfloat16")


def _wanted_cells(
    bench: Bench, model: str, stem: str, cells: Sequence[Cell], dtype: str = "float32"
) -> None:
    wanted = [cell for cell in cells if bench.wants(f"{stem}.{cell.name}")]
    if wanted and not bench.out_of_time():
        _measured(bench, _Series(model, stem, dtype), wanted, bench.n or REPEATS)


def _worst(bench: Bench) -> None:
    found = worst_of(bench, STEMS)
    if found is None:
        bench.say("drafts.worst_speedup needs all cells of both models")
        return
    if bench.out_of_time():
        return
    model, cell = found
    series = _Series(model, STEMS[model])
    got = _measured(bench, series, [cell], bench.n or REPEATS, narrow=bench.n is None)
    if got is not None:
        bench.put_measured("drafts.worst_speedup", got, unit="ratio", better="higher")


@dataclass(frozen=True)
class _Series:
    """A model, how its figures' names begin, and the dtype that it computes in."""

    model: str
    stem: str
    dtype: str = "float32"


def _measured(
    bench: Bench, series: _Series, cells: list[Cell], repeats: int, *, narrow: bool = False
) -> Measured | None:
    """Measure cells of one model and keep them; the last one's figure."""
    source = bundled("generator")[GENERATOR]
    with tempfile.TemporaryDirectory() as folder:
        directory = source
        if series.model == "wide":
            # On the engine's thread: parallel regions of another would slow everyone later.
            directory = compute_thread("cpu").call(
                lambda: write_widened(source, Path(folder) / "wide", seed=bench.seed)
            )
        return asyncio.run(_cells(bench, series, directory, cells, repeats, narrow))


async def _cells(
    bench: Bench,
    series: _Series,
    directory: Path,
    cells: list[Cell],
    repeats: int,
    narrow: bool,
) -> Measured | None:
    engine = _open(directory, series.dtype)
    try:
        runner = Cells(bench, engine, series.model)
        await runner.warm_up(cells)
        last: Measured | None = None
        for cell in cells:
            if bench.out_of_time():
                break
            last = await runner.measure(cell, repeats, narrow=narrow)
            name = f"{series.stem}.{cell.name}"
            bench.put_measured(name, last, unit="ratio", better="higher")
        return last
    finally:
        await engine.aclose()
