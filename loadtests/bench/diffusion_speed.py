"""Time of denoising trees: wide rounds, requests at once, and the request that comes again.

All ratios are of times on this machine in one run. `batched_speedup` is evaluations a second of one
request of width 16 over those of width 1, which take turns problem by problem: median, smallest and
largest. `concurrent_speedup` sends 16 requests through the product, one after the other and then at
once, with the same seeds. `second_request_reuse_share` asks the product the same twice without a
seed: what the second one finds of the evaluations that the first one made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, Final

import httpx
import numpy as np

from loadtests.bench import paired
from loadtests.bench.diffusion_quality import LENGTH, MODEL, mixed, open_diffusion
from loadtests.bench.figures import Bench, BenchError
from loadtests.bench.questions import Question
from loadtests.bench.saplings import seed_of
from models.registry import bundled
from server.app import create_app
from server.settings import Settings

_WIDE: Final = 16
_SAMPLES: Final = 16
_REPEATS: Final = 6
_AT_ONCE: Final = 16
_ROUNDS: Final = 3
_FEW: Final = 4
_AGAIN: Final = 16


async def measure(bench: Bench) -> None:
    """The three ratios."""
    if bench.wants("diffusion.batched_speedup"):
        await _batched(bench)
    if bench.wants("diffusion.concurrent_speedup") and not bench.out_of_time():
        await _concurrent(bench)
    if bench.wants("diffusion.second_request_reuse_share") and not bench.out_of_time():
        await _again(bench)


async def _batched(bench: Bench) -> None:
    ratios = []
    questions = mixed(bench.seed, "validation")(bench.at_most(_REPEATS) + 1)
    async with open_diffusion() as saplings:
        for index, question in enumerate(questions):
            paces = {}
            for width in (_WIDE, 1) if index % 2 else (1, _WIDE):
                seed, begin = seed_of("speed", bench.seed, index), time.perf_counter()
                result, _ = await saplings.search(
                    question.messages, "dts_star", {"width": width, "samples": _SAMPLES}, seed
                )
                paces[width] = result.spent.nfe / (time.perf_counter() - begin)
            bench.say(f"evaluations a second: {paces[_WIDE]:.0f} wide, {paces[1]:.0f} one by one")
            ratios.append(paces[_WIDE] / paces[1])
    _put_ratio(bench, "diffusion.batched_speedup", ratios[1:])  # the first one warms up


async def _concurrent(bench: Bench) -> None:
    ratios = []
    async with _product() as client:
        for turn in range(bench.at_most(_ROUNDS) + 1):
            questions = mixed(seed_of("at once", bench.seed, turn), "validation")(_AT_ONCE)
            bodies = [_body(one, seed=turn, samples=_FEW) for one in questions]
            begin = time.perf_counter()
            for one in bodies:
                await _ask(client, one)
            between = time.perf_counter()
            await asyncio.gather(*(_ask(client, one) for one in bodies))
            ratios.append((between - begin) / (time.perf_counter() - between))
    _put_ratio(bench, "diffusion.concurrent_speedup", ratios[1:])


async def _again(bench: Bench) -> None:
    shares = []
    async with _product() as client:
        for question in mixed(bench.seed, "test")(bench.at_most(_AGAIN)):
            first, second = [await _ask(client, _body(question, samples=_FEW)) for _ in range(2)]
            made = first["bough"]["spent"]["nfe"]
            shares.append(second["bough"]["tree"]["reused_nfe"] / made)
            if second["bough"]["score"] < first["bough"]["score"]:
                raise BenchError("a second request was answered worse than the first")
    share = paired.mean(np.array(shares), bench.seed)
    name = "diffusion.second_request_reuse_share"
    bench.put_measured(name, share, unit="share", better="higher")


@asynccontextmanager
async def _product() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server in this process."""
    found = bundled()
    if MODEL not in found:
        raise BenchError(f"{MODEL} not found in models/; run `make models`")
    engine = {"kind": "diffusion", "model": str(found[MODEL])}
    values: dict[str, Any] = {
        "models": {MODEL: {"engine": engine, "reward_model": "short"}},
        "reward_models": {"short": {"kind": "short"}},
    }
    app = create_app(Settings(**values))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://bough", timeout=600
        ) as client:
            yield client


def _body(question: Question, *, samples: int, seed: int | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": list(question.messages),
        "max_tokens": LENGTH,
        "bough": {"strategy": "dts_star", "params": {"samples": samples}, "cache": False},
    }
    return body if seed is None else {**body, "seed": seed}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json=body)
    reply: dict[str, Any] = response.json()
    if response.status_code != 200:
        raise BenchError(f"the product refused: {reply['error']['message']}")
    return reply


def _put_ratio(bench: Bench, name: str, ratios: Sequence[float]) -> None:
    low, high = min(ratios), max(ratios)
    bench.put(
        name, median(ratios), unit="ratio", n=len(ratios), low=low, high=high, better="higher"
    )
