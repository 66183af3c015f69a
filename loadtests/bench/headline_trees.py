"""ETS against REBASE: claimed cache over the decode steps, and accuracy.

Cache is counted twice: by the branches that claim it, and with branches merged that drew the same
tokens after the same tokens, as a cache does that knows prefixes by their content. The pool has
room for everybody here, so nothing is recomputed. At every width the price of nodes,
`lambda_b`, is the smallest on a grid whose cache on the validation split is at most half of
REBASE's; `lambda_d` is the published one of that width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loadtests.bench import paired
from loadtests.bench.figures import Bench
from loadtests.bench.kv_trace import kv_trace
from loadtests.bench.questions import Question
from loadtests.bench.saplings import Saplings, open_saplings
from loadtests.bench.trials import Contender, Lab, Rows
from search.run import Result
from search.tree import SearchTree

WIDTHS: Final = (16, 64, 256)
LAMBDA_D: Final[Mapping[int, float]] = {16: 1.5, 64: 1.4, 256: 1.45}
_LAMBDA_B: Final = (1.0, 1.25, 1.5, 2.0, 3.0)
_WANTED: Final = 2.0
_PROBLEMS: Final[Mapping[int, int]] = {16: 1000, 64: 3000, 256: 200}
_VALIDATION: Final[Mapping[int, int]] = {16: 96, 64: 32, 256: 8}
_IN_FLIGHT: Final[Mapping[int, int]] = {16: 24, 64: 12, 256: 4}
_POOL: Final = 131_072


async def measure(bench: Bench) -> None:
    """All widths."""
    for width in WIDTHS:
        names = [
            f"headline.ets.{name}.w{width}" for name in ("kv_reduction", "kv_reduction_merged")
        ]
        if width != WIDTHS[-1]:
            names.append(f"headline.ets.accuracy_delta.w{width}")
        if any([bench.wants(name) for name in names]) and not bench.out_of_time():
            async with open_saplings(kv_tokens=_POOL) as saplings:
                await _compare(bench, saplings, width)


async def tuned(bench: Bench, saplings: Saplings, width: int) -> Contender | None:
    """ETS with its knobs for a width, from the validation split; None when time ran out."""
    lab = Lab(
        bench, saplings, "validation", name="trees", probe=_probe, in_flight=_IN_FLIGHT[width]
    )
    count = bench.at_most(_VALIDATION[width])
    rebase = await lab.run(Contender("rebase", width), range(count))
    if rebase is None:
        return None
    for lambda_b in _LAMBDA_B:
        contender = _ets(width, lambda_b)
        rows = await lab.run(contender, range(count))
        if rows is None:
            return None
        found = paired.quotient(rebase["mean_kv"], rows["mean_kv"])
        delta = float((rows.right - rebase.right).mean())
        bench.say(
            f"validation, {contender}: cache 1/{found.value:.2f} of rebase's, "
            f"accuracy {delta:+.3f} (n={count})"
        )
        if found.value >= _WANTED:
            break
    return contender


def _ets(width: int, lambda_b: float) -> Contender:
    return Contender("ets", width, {"lambda_b": lambda_b, "lambda_d": LAMBDA_D[width]})


def _probe(question: Question, result: Result, tree: SearchTree) -> dict[str, Any]:
    trace = kv_trace(tree.branches, tree.prompt_tokens)
    merged = kv_trace(tree.branches, tree.prompt_tokens, merged=True)
    return {
        "mean_kv": trace.mean,
        "peak_kv": trace.peak,
        "mean_kv_merged": merged.mean,
        "steps": trace.steps,
    }


async def _compare(bench: Bench, saplings: Saplings, width: int) -> None:
    ets = await tuned(bench, saplings, width)
    if ets is None:
        return
    count = bench.at_most(_PROBLEMS[width])
    lab = Lab(bench, saplings, "test", name="trees", probe=_probe, in_flight=_IN_FLIGHT[width])
    rows: dict[str, Rows] = {}
    for contender in (Contender("rebase", width), ets):
        got = await lab.run(contender, range(count))
        if got is None:
            return
        rows[contender.strategy] = got
        cache, peak = got["mean_kv"].mean(), got["peak_kv"].mean()
        bench.say(
            f"{contender.strategy}({contender}): {got.right.mean():.3f} right, "
            f"{got.tokens.mean():.0f} tokens, cache {cache:.0f} tokens in the mean and {peak:.0f} "
            f"at the peak, merged {got['mean_kv_merged'].mean():.0f} in the mean, "
            f"{got['steps'].mean():.0f} decode steps, {got.seconds.mean():.3f} s (n={count})"
        )
    kv = paired.quotient(rows["rebase"]["mean_kv"], rows["ets"]["mean_kv"], bench.seed)
    bench.put_measured(f"headline.ets.kv_reduction.w{width}", kv, unit="ratio", better="higher")
    kv = paired.quotient(
        rows["rebase"]["mean_kv_merged"], rows["ets"]["mean_kv_merged"], bench.seed
    )
    name = f"headline.ets.kv_reduction_merged.w{width}"
    bench.put_measured(name, kv, unit="ratio", better="higher")
    if width != WIDTHS[-1]:
        delta = paired.difference(rows["ets"].right, rows["rebase"].right, bench.seed)
        name = f"headline.ets.accuracy_delta.w{width}"
        bench.put_measured(name, delta, unit="share", better="higher")
