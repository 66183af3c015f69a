"""What the tree's evaluations buy: the best reward by their number, against best-of-N.

`diffusion.nfe_share_of_best_of_n.nN` is the smallest share of the evaluations of N whole samples at
which `dts_star`'s best reward so far, in the mean over problems, is that of best-of-N; 1 where it
is not reached within half of them. It is read on a grid of sixtieths. Best-of-64 is read from the
same samples as best-of-256, as the mean over its four blocks. `diffusion.dts_star_minus_fk`
(N = 64; `.n256`) compares at a third of best-of-N's cost, where steering has its guesses for free:
it gets as many particles as whole texts fit, and its looks ahead are not charged. `dts_star` has a
width of 1, with which it knows most when it selects, ends at a reward of 1, which nothing exceeds,
and is otherwise as it is served.

Beside the reward: the perplexity of the tales under the autoregressive sapling, which no contender
sees, and the share of distinct word trigrams among the answers, at the smaller size.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.diffusion.engine import open_engine
from loadtests.bench import paired
from loadtests.bench.figures import Bench, BenchError
from loadtests.bench.paired import Column
from loadtests.bench.questions import Question, Source, of_task
from loadtests.bench.saplings import Saplings
from loadtests.bench.trials import Contender, Lab, Rows
from models.evaluate import Measured
from models.registry import bundled
from models.short_judge import open_judge
from models.tasks import tales, totals
from models.tasks.base import Split
from reward_models.base import Candidate
from reward_models.likelihood import open_judge as open_likelihood
from search.run import Result
from search.tree import SearchTree

MODEL: Final = "sapling-diffusion"
READER: Final = "sapling-sums"
LENGTH: Final = 32
GRID: Final = 60
_HALF: Final = GRID // 2
_PROBLEMS: Final = 50
_SEEDS: Final = {64: 3, 256: 1}
_BLOCK: Final = 64
_LEVEL: Final = 0.05
_BEST: Final = 1.0
"""The judge's largest reward: what a curve that is there reads does not depend on going on."""


async def measure(bench: Bench) -> None:
    """Both sizes, and what is read beside the reward."""
    sizes = [size for size in sorted(_SEEDS) if any([*map(bench.wants, _names(size))])]
    is_beside = any([*map(bench.wants, _BESIDE)])
    if not sizes and not is_beside:
        return
    async with open_diffusion() as saplings:
        answers: dict[str, list[str]] = {}
        for size in sizes or [min(_SEEDS)]:
            found = await _size(bench, saplings, size, largest=max(sizes, default=0))
            if found is None:
                return
            answers = answers or found
    if is_beside:
        await _beside(bench, answers)


_OF_SIZE: Final = ("nfe_share_of_best_of_n", "dts_star_minus_fk")
_CONTENDERS: Final = ("best_of_n", "dts_star", "fk_steering")
_BESIDE: Final = tuple(
    f"diffusion.{name}.{one}" for name in ("perplexity", "distinct_trigrams") for one in _CONTENDERS
)


@asynccontextmanager
async def open_diffusion() -> AsyncIterator[Saplings]:
    """The bundled diffusion model and its judge.

    Raises:
        BenchError: It is not bundled.
    """
    found = bundled()
    if MODEL not in found:
        raise BenchError(f"{MODEL} not found in models/; run `make models`")
    engine = open_engine(MODEL, str(found[MODEL]), {})
    judge = open_judge("short", "", {})
    try:
        yield Saplings(engine, judge, LENGTH)
    finally:
        await judge.aclose()
        await engine.aclose()


def mixed(seed: int, split: Split) -> Source:
    """Sums and tales in turns."""
    sources = [of_task(name, seed=seed, split=split) for name in (totals.NAME, tales.NAME)]

    def draw(count: int) -> Sequence[Question]:
        halves = [source((count + 1) // 2) for source in sources]
        return [halves[at % 2][at // 2] for at in range(count)]

    return draw


def _names(size: int) -> list[str]:
    """Of the two figures; the second goes without a number at the smallest size."""
    share, gap = (f"diffusion.{name}" for name in _OF_SIZE)
    return [f"{share}.n{size}", gap if size == min(_SEEDS) else f"{gap}.n{size}"]


async def _size(
    bench: Bench, saplings: Saplings, size: int, *, largest: int
) -> dict[str, list[str]] | None:
    """Both figures of one size over its seeds; the answers of the first seed, by contender."""
    gaps: list[Column] = []
    curves: list[Rows] = []
    targets: list[Column] = []
    answers: dict[str, list[str]] = {}
    count = bench.at_most(_PROBLEMS)
    for offset in range(_SEEDS[size]):
        lab = _lab(bench, saplings, bench.seed + offset)
        drawn = max(size, largest) if offset == 0 else size
        plain = await lab.run(Contender("best_of_n", drawn), range(count))
        if plain is None:
            return None
        whole = float(plain["nfe"].mean()) / drawn
        tree = await lab.run(_tree(size, whole), range(count))
        particles = await lab.run(_particles(size), range(count))
        if tree is None or particles is None:
            return None
        targets.append(plain[f"best{size}"])
        curves.append(_on_grid(tree, whole * size))
        gaps.append(curves[-1][f"best{GRID // 3}"] - particles["reward"])
        columns = ("content64", "content", "content")  # best-of-64 out of what may be 256
        pairs = zip(_CONTENDERS, (plain, tree, particles), columns, strict=True)
        answers = answers or {name: rows.raw(column) for name, rows, column in pairs}
        bench.say(
            f"n={size}, seed {bench.seed + offset}: best-of-{size} {targets[-1].mean():.4f} for "
            f"{whole * size:.0f} evaluations; dts_star {tree['reward'].mean():.4f} for "
            f"{tree['nfe'].mean():.0f}; fk_steering {particles['reward'].mean():.4f} for "
            f"{particles['nfe'].mean():.0f}; right {plain.right.mean():.2f}, "
            f"{tree.right.mean():.2f}, {particles.right.mean():.2f}"
        )
    share = reached(Rows.joined(curves), np.concatenate(targets), bench.seed)
    of_share, of_gap = _names(size)
    bench.put_measured(of_share, share, unit="share", better="lower")
    gap = np.concatenate(gaps)
    gain = paired.difference(gap, np.zeros(len(gap)), bench.seed)
    bench.put_measured(of_gap, gain, unit="reward", better="higher")
    return answers


def _tree(size: int, whole: float) -> Contender:
    """The sequential search, with half of best-of-N's evaluations, or until nothing is better."""
    samples = max(1, math.floor(size * whole / LENGTH / 2))
    return Contender("dts_star", 1, {"samples": samples, "target": _BEST})


def _particles(size: int) -> Contender:
    """As many particles as whole texts fit into a third; their guesses are not charged."""
    return Contender("fk_steering", size // 3)


def _lab(bench: Bench, saplings: Saplings, seed: int) -> Lab:
    """Of both sizes: what one has drawn is there for the other."""
    source = mixed(seed, "test")
    return Lab(bench, saplings, "test", name="diffusion", source=source, seed=seed, probe=probe)


def probe(question: Question, result: Result, tree: SearchTree) -> dict[str, Any]:
    """Reward, evaluations, the best of the first samples, and the best by evaluations."""
    order = sorted(result.candidates, key=lambda one: one.branch)
    rewards = [one.score or 0.0 for one in order]
    blocks = [rewards[at : at + _BLOCK] for at in range(0, len(rewards), _BLOCK)]
    first = max(order[:_BLOCK], key=lambda one: one.score or 0.0)
    return {
        "content64": first.content,
        "reward": result.score or 0.0,
        "nfe": result.spent.nfe,
        "best64": float(np.mean([max(block) for block in blocks])),
        "best256": max(rewards),
        "curve": curve_of(tree),
    }


def curve_of(tree: SearchTree) -> list[tuple[int, float]]:
    """(evaluations, best reward so far) at every judgement that was better than all before."""
    nfe, best, points = 0, -math.inf, list[tuple[int, float]]()
    for event in tree.events():
        nfe += event.data.get("nfe", 0) if event.kind == "grown" else 0
        if event.kind == "scored" and event.data["value"] > best:
            best = event.data["value"]
            points.append((nfe, best))
    return points


def _on_grid(rows: Rows, whole: float) -> Rows:
    """The best reward at every sixtieth of the evaluations of best-of-N, up to half of them."""
    found = []
    for curve in rows.raw("curve"):
        at = {f"best{step}": best_at(curve, whole * step / GRID) for step in range(1, _HALF + 1)}
        found.append(at)
    return Rows(found)


def best_at(curve: Sequence[tuple[int, float]], nfe: float) -> float:
    """The best reward after so many evaluations; 0 before the first text."""
    return max((best for spent, best in curve if spent <= nfe), default=0.0)


def reached(rows: Rows, target: Column, seed: int) -> Measured:
    """The first sixtieth at which the mean is at least the target's, as a share; 1 if none is.

    The interval is of resampled problems, each with its target.
    """
    columns = np.stack([rows[f"best{step}"] for step in range(1, _HALF + 1)])
    rng = np.random.default_rng(seed)
    count = len(target)

    def share(chosen: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        means, wanted = columns[:, chosen].mean(axis=1), target[chosen].mean()
        hits = np.flatnonzero(means >= wanted - 1e-12)
        return float(hits[0] + 1) / GRID if len(hits) else 1.0

    shares = [share(rng.integers(0, count, count)) for _ in range(2000)]
    low, high = np.quantile(shares, [_LEVEL / 2, 1 - _LEVEL / 2])
    return Measured(share(np.arange(count)), count, float(low), float(high))


async def _beside(bench: Bench, answers: Mapping[str, Sequence[str]]) -> None:
    """Perplexity of the tales, which are every second answer, and distinct trigrams."""
    judge = open_likelihood("likelihood", str(_reader()), {"before": "<|begin|><|user|>"})
    try:
        for name, texts in answers.items():
            stories = list(texts)[1::2]
            if not stories:
                continue
            scores = await judge.score(
                [Candidate((), text, (), (text,), is_finished=True) for text in stories]
            )
            nats = np.array([one.value for one in scores])
            mean = paired.mean(nats, bench.seed)
            bench.put(
                f"diffusion.perplexity.{name}",
                math.exp(-mean.value),
                unit="perplexity",
                n=mean.n,
                low=math.exp(-mean.high),
                high=math.exp(-mean.low),
                better="lower",
            )
            bench.put(
                f"diffusion.distinct_trigrams.{name}",
                distinct_trigrams(stories),
                unit="share",
                n=len(stories),
                better="higher",
            )
    finally:
        await judge.aclose()


def distinct_trigrams(texts: Sequence[str]) -> float:
    """Distinct word trigrams over all of them; 0 where there are none."""
    every = [
        tuple(words[at : at + 3])
        for words in (text.split() for text in texts)
        for at in range(len(words) - 2)
    ]
    return len(set(every)) / len(every) if every else 0.0


def _reader() -> Path:
    found = bundled()
    if READER not in found:
        raise BenchError(f"{READER} not found in models/; run `make models`")
    return found[READER]
