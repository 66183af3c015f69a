"""What bough costs in front of vLLM: the same greedy requests to it and to a bare server.

The two take turns, block by block, on new problems each time; both answer the same tokens, so that
seconds compare. Clients send the next request when the last is answered, so many at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import httpx

from loadtests.peers import servers
from loadtests.peers.blocks import prompt_of, word_problems

BARE, BOUGH = "bare", "bough"
_SIDES: Final = (BARE, BOUGH)


@dataclass(frozen=True)
class Load:
    """Requests of one block and how many are under way at a time."""

    requests: int
    in_flight: int


ALONE: Final = Load(requests=24, in_flight=1)
CROWD: Final = Load(requests=160, in_flight=32)


@dataclass(frozen=True)
class Turn:
    """One block on one side.

    Attributes:
        seconds: Of the whole block.
        latencies: Of each request, seconds, in the order asked.
        tokens: Drawn for each.
    """

    seconds: float
    latencies: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """One block on both sides."""

    bare: Turn
    bough: Turn

    @property
    def added_ms(self) -> float:
        """Median over requests of what bough took longer, milliseconds."""
        pairs = zip(self.bough.latencies, self.bare.latencies, strict=True)
        return 1000 * median(ours - theirs for ours, theirs in pairs)

    @property
    def throughput_ratio(self) -> float:
        """bough's tokens a second over those of the bare server."""
        ours = sum(self.bough.tokens) / self.bough.seconds
        return ours / (sum(self.bare.tokens) / self.bare.seconds)

    @property
    def num_unlike(self) -> int:
        """Requests that the two answered with another number of tokens."""
        return sum(map(int.__ne__, self.bough.tokens, self.bare.tokens))


def take_turns(
    load: Load, repeats: int, seed: int, say: Callable[[str], object], is_over: Callable[[], bool]
) -> list[Pair]:
    """Start both servers, measure, end both.

    Args:
        load: Of each block.
        repeats: Blocks.
        seed: Of the problems.
        say: Told of every block.
        is_over: Asked before every block.

    Raises:
        ServerFailed: A server did not start, or refused a request.
    """
    with servers.bare_vllm() as bare, servers.bough("vllm") as ours:
        urls = {BARE: bare, BOUGH: ours}
        return asyncio.run(_turns(urls, load, repeats, seed, say, is_over))


async def _turns(
    urls: Mapping[str, str],
    load: Load,
    repeats: int,
    seed: int,
    say: Callable[[str], object],
    is_over: Callable[[], bool],
) -> list[Pair]:
    problems = word_problems(load.requests * (repeats + 1), seed)
    prompts = [prompt_of(problem) for problem in problems]
    found = []
    for side in _SIDES:
        await ask(urls[side], prompts[: load.requests], load.in_flight)
    for repeat in range(repeats):
        if is_over():
            break
        block = prompts[load.requests * (repeat + 1) : load.requests * (repeat + 2)]
        turns = {}
        for side in _SIDES if repeat % 2 == 0 else reversed(_SIDES):
            turns[side] = await ask(urls[side], block, load.in_flight)
        pair = Pair(turns[BARE], turns[BOUGH])
        p50 = {side: 1000 * median(turn.latencies) for side, turn in turns.items()}
        say(
            f"{load.in_flight} at a time, {repeat}: p50 {p50[BARE]:.1f} ms bare, "
            f"{p50[BOUGH]:.1f} ms bough, {pair.added_ms:+.1f} ms a request; throughput "
            f"{pair.throughput_ratio:.3f} of bare; {pair.num_unlike} answers of another length"
        )
        found.append(pair)
    return found


async def ask(url: str, prompts: Sequence[str], in_flight: int) -> Turn:
    """All prompts, greedily.

    Raises:
        ServerFailed: A request was not answered with 200.
    """
    gate = asyncio.Semaphore(in_flight)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:

        async def one(prompt: str) -> tuple[float, int]:
            async with gate:
                begin = time.perf_counter()
                reply = await http.post("/v1/chat/completions", json=_body(prompt))
                seconds = time.perf_counter() - begin
            if reply.status_code != 200:
                raise servers.ServerFailed(f"{url}: {reply.status_code}: {reply.text[:500]}")
            return seconds, reply.json()["usage"]["completion_tokens"]

        begin = time.perf_counter()
        answers = await asyncio.gather(*map(one, prompts))
        seconds = time.perf_counter() - begin
    latencies, tokens = zip(*answers, strict=True)
    return Turn(seconds, latencies, tokens)


def _body(prompt: str) -> dict[str, Any]:
    return {
        "model": servers.GENERATOR,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_completion_tokens": servers.MAX_TOKENS,
    }
