"""``bough bench engine``: speed against Hugging Face, memory, exactness, reproducibility.

Branch loads are 64 branches of 128 new tokens after one 512-token prompt, stream loads one branch
of the same; float32, one machine, one process. "random" is a 29.9 M parameter Llama of random
weights, "sapling" the bundled generator. ``--n`` is the number of repeats of a ratio (default 3)
and of prompts and seeds elsewhere (default 100).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from engines.embedded.compute import compute_thread
from engines.embedded.engine import EmbeddedEngine, open_engine
from loadtests.bench import exactness, speed
from loadtests.bench.baselines import Load, load_peer
from loadtests.bench.figures import Bench, bench_command
from loadtests.bench.random_llama import write_random_llama
from models.registry import bundled

BRANCHES: Final = Load(branches=64, new_tokens=128, prompt_tokens=512)
STREAM: Final = Load(branches=1, new_tokens=128, prompt_tokens=512)
GENERATOR: Final = "sapling-sums"
_PEERS: Final = ("generate", "cached_loop")
_SHORT_TURNS: Final = 3  # what is over in seconds takes so many times as many turns
_GREEDY_TOKENS: Final = 64
_LONGEST_PROMPT: Final = 256


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        branches: The load of many branches.
        stream: The load of one.
        repeats: Turns per ratio.
        prompts: Greedy prompts, and seeds of the reproducibility check.
    """

    branches: Load = BRANCHES
    stream: Load = STREAM
    repeats: int = 3
    prompts: int = 100


@bench_command("engine")
def run(bench: Bench) -> None:
    """Everything that concerns the embedded engine alone."""
    measure(bench, Plan(repeats=bench.n or 3, prompts=bench.n or 100))


def measure(bench: Bench, plan: Plan) -> None:
    """Measure what is wanted, one model after the other."""
    with _models(bench) as directories:
        for name in ("sapling", "random"):
            if _wanted(bench, name) and name in directories:
                asyncio.run(_one_model(bench, plan, name, directories[name]))
        if bench.wants("engine.greedy_mismatches") or bench.wants("engine.logp_max_difference"):
            asyncio.run(_exactness(bench, plan, directories))
    if bench.wants("repro.mismatch_share"):
        from loadtests.bench.repro import measure_repro

        measure_repro(bench, plan.prompts)


@contextmanager
def _models(bench: Bench) -> Iterator[dict[str, Path]]:
    """Directories by name; the random one lives as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        directories = {}
        saplings = bundled("generator")
        if GENERATOR in saplings:
            directories["sapling"] = saplings[GENERATOR]
        else:
            bench.say(f"there is no bundled {GENERATOR}; its figures are left out")
        # On the engine's thread: parallel regions of another would slow everyone measured later.
        directories["random"] = compute_thread("cpu").call(
            lambda: write_random_llama(Path(folder), seed=bench.seed)
        )
        yield directories


def _speed_names(model: str) -> dict[str, str]:
    """Figure by what is compared."""
    stem = "engine.tokens_per_s_vs_hf"
    return {
        "generate": f"{stem}.branches64.{model}",
        "cached_loop": f"{stem}_cached.branches64.{model}",
        "stream": f"{stem}.stream1.{model}",
    }


_RANDOM_ONLY: Final = (
    "engine.floor_fraction.branches64.random",
    "engine.kv_peak_over_unique",
    "engine.kv_peak_over_bound",
)


def _wanted(bench: Bench, model: str) -> bool:
    names = [*_speed_names(model).values(), *(_RANDOM_ONLY if model == "random" else ())]
    return any([bench.wants(name) for name in names])


def open_float32(model_id: str, directory: Path) -> EmbeddedEngine:
    """The embedded engine on the CPU, float32, torch's own threads."""
    return open_engine(model_id, str(directory), {"device": "cpu", "dtype": "float32"})


async def _one_model(bench: Bench, plan: Plan, model: str, directory: Path) -> None:
    engine = open_float32(model, directory)
    try:
        peer = load_peer(directory)
        await _speed(bench, plan, model, engine, peer)
        if model == "random":
            await _floor(bench, plan, engine, peer)
            await _memory(bench, plan, engine)
    finally:
        await engine.aclose()


async def _speed(bench: Bench, plan: Plan, model: str, engine: EmbeddedEngine, peer: Any) -> None:
    names = _speed_names(model)
    peers = [peer_name for peer_name in _PEERS if bench.wants(names[peer_name])]
    more = plan.repeats * _SHORT_TURNS
    if peers:
        repeats = more if model == "sapling" else plan.repeats
        turns = await speed.take_turns(bench, engine, peer, plan.branches, peers, model, repeats)
        for peer_name in peers if len(turns) == repeats else ():
            speed.put_ratio(bench, names[peer_name], turns, peer_name)
    if bench.wants(names["stream"]):
        alone = ["generate"]
        turns = await speed.take_turns(bench, engine, peer, plan.stream, alone, model, more)
        if len(turns) == more:
            speed.put_ratio(bench, names["stream"], turns, "generate")


async def _floor(bench: Bench, plan: Plan, engine: EmbeddedEngine, peer: Any) -> None:
    name = "engine.floor_fraction.branches64.random"
    if not bench.wants(name):
        return
    found = await speed.floor_fraction(bench, engine, peer, plan.branches, plan.repeats)
    if len(found) == plan.repeats:
        ends = {"low": min(found), "high": max(found)}
        bench.put(name, median(found), unit="ratio", n=len(found), better="higher", **ends)


async def _memory(bench: Bench, plan: Plan, engine: EmbeddedEngine) -> None:
    over_unique, over_bound = _RANDOM_ONLY[1:]
    if not bench.wants(over_unique) and not bench.wants(over_bound):
        return
    load = plan.branches
    prompt = speed.prompt_of(engine.info.vocab_size, load, bench.seed, 2000)
    engine.reset_peak()
    prefix = await engine.open(prompt)
    answers = await speed.answers_of(engine, prefix, load, bench.seed)
    prefix.release()
    page_tokens = engine.stats().page_tokens
    peak = engine.peak_claimed_pages * page_tokens
    unique = speed.unique_tokens(prompt, answers)
    bound = unique + load.branches * page_tokens
    bench.say(f"peak {peak} KV tokens, {unique} unique, {bound} with a page more per branch")
    bench.put(over_unique, peak / unique, unit="ratio", n=load.branches, better="lower")
    bench.put(over_bound, peak / bound, unit="ratio", n=load.branches, better="lower")


async def _exactness(bench: Bench, plan: Plan, directories: dict[str, Path]) -> None:
    """Prompts shared out over the models: word problems for the sapling, else random tokens."""
    found: list[exactness.Agreement] = []
    for at, (name, directory) in enumerate(directories.items()):
        count = plan.prompts // len(directories) + (at < plan.prompts % len(directories))
        engine = open_float32(name, directory)
        try:
            peer = load_peer(directory)
            if name == "sapling":
                prompts = _word_problems(engine, count, bench.seed)
            else:
                longest = min(_LONGEST_PROMPT, engine.info.context_tokens - _GREEDY_TOKENS)
                size = engine.info.vocab_size
                prompts = exactness.random_prompts(size, count, bench.seed, longest)
            found += await exactness.agreements(engine, peer, prompts, _GREEDY_TOKENS)
        finally:
            await engine.aclose()
    wrong = sum(not one.is_equal for one in found)
    gap = max(one.logp_gap for one in found)
    n = len(found)
    bench.put("engine.greedy_mismatches", wrong, unit="prompts", n=n, better="lower")
    bench.put("engine.logp_max_difference", gap, unit="nats", n=n, better="lower")


def _word_problems(engine: EmbeddedEngine, count: int, seed: int) -> list[tuple[int, ...]]:
    from models.evaluate import held_out
    from models.tasks.base import messages_of

    prompts = []
    for problem in held_out(count, seed):
        prompt = engine.render(messages_of(problem))
        assert isinstance(prompt, tuple)
        prompts.append(prompt)
    return prompts
