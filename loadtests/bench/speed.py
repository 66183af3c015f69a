"""Tokens a second of the embedded engine and of its peers, side by side in one process.

The contenders take turns on the same prompts, a new prompt for each repeat so that no cache is
warm, with the same torch threads; a ratio is taken within a repeat and the median over repeats is
reported, with the smallest and the largest. Prompt processing is part of the time. Deltas are not
asked for: the peers give none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeAlias

from engines.base import Continuation, Engine, Prefix, Sampling, TokenIds
from loadtests.bench import baselines
from loadtests.bench.baselines import Load, Timing
from loadtests.bench.figures import Bench, Journal, code_hash

Turn: TypeAlias = dict[str, float]
"""Tokens a second of each contender in one repeat."""


def prompt_of(vocab_size: int, load: Load, seed: int, repeat: int) -> TokenIds:
    """Random tokens; every repeat has its own."""
    rng = random.Random(f"prompt:{seed}:{repeat}")
    return tuple(rng.randrange(vocab_size) for _ in range(load.prompt_tokens))


async def ours(engine: Engine, prompt: TokenIds, load: Load, seed: int) -> Timing:
    """The embedded engine on one prompt."""
    begin = time.perf_counter()
    prefix = await engine.open(prompt)
    answers = await answers_of(engine, prefix, load, seed)
    seconds = time.perf_counter() - begin
    prefix.release()
    return Timing(sum(len(answer) for answer in answers), seconds)


async def answers_of(engine: Engine, prefix: Prefix, load: Load, seed: int) -> list[TokenIds]:
    """Draw all branches to their full length."""
    how = Sampling(max_tokens=load.new_tokens, min_tokens=load.new_tokens, deltas=False)
    seeds = [seed * 1_000_003 + index for index in range(load.branches)]
    answers = []
    async for item in engine.sample(prefix, how, n=load.branches, seeds=seeds):
        if isinstance(item, Continuation):
            answers.append(item.token_ids)
            item.prefix.release()
    return answers


async def take_turns(
    bench: Bench, engine: Engine, peer: Any, load: Load, names: list[str], model: str, repeats: int
) -> list[Turn]:
    """All repeats that time allows; what an earlier run of the same code measured is kept.

    Args:
        bench: Where the journal lies, and how long there is.
        engine: The embedded engine.
        peer: The Hugging Face model of the same weights.
        load: Branches and lengths.
        names: Of "generate" and "cached_loop", which to measure.
        model: For the journal's keys.
        repeats: How many turns everyone takes.

    Raises:
        RuntimeError: A contender made another number of tokens.
    """
    journal = Journal(bench.out / "engine.turns.jsonl")
    peers: dict[str, Callable[[Any, TokenIds, Load, int], Timing]] = {
        "generate": baselines.generate,
        "cached_loop": baselines.cached_loop,
    }
    short = Load(min(load.branches, 2), 2, min(load.prompt_tokens, 16))
    await ours(engine, prompt_of(engine.info.vocab_size, short, bench.seed, -1), short, 0)
    turns: list[Turn] = []
    for repeat in range(repeats):
        key = f"{model}:{load}:{bench.seed}:{repeat}:{code_hash()}"
        turn: Turn = dict(journal.rows.get(f"{key}:{names}", {}).get("turn", {}))
        prompt = prompt_of(engine.info.vocab_size, load, bench.seed, repeat)
        order = ["ours", *names] if repeat % 2 == 0 else [*reversed(names), "ours"]
        for name in order:
            if name in turn:
                continue
            if bench.out_of_time():
                return turns
            if name == "ours":
                timing = await ours(engine, prompt, load, bench.seed + repeat)
            else:
                timing = peers[name](peer, prompt, load, bench.seed + repeat)
            if timing.tokens != load.branches * load.new_tokens:
                raise RuntimeError(f"{name} made {timing.tokens} tokens for {load}")
            turn[name] = timing.tokens_per_s
            shape = f"{load.branches} x {load.new_tokens}"
            bench.say(f"{model} {shape} {name}: {timing.tokens_per_s:.0f} tokens/s")
        if f"{key}:{names}" not in journal.rows:
            journal.add(f"{key}:{names}", {"turn": turn})
        turns.append(turn)
    return turns


def put_ratio(bench: Bench, name: str, turns: list[Turn], peer: str) -> None:
    """The median ratio of ours to a peer's, with the extremes over repeats."""
    ratios = [turn["ours"] / turn[peer] for turn in turns]
    bench.put(
        name,
        median(ratios),
        unit="ratio",
        n=len(ratios),
        low=min(ratios),
        high=max(ratios),
        better="higher",
    )


async def floor_fraction(
    bench: Bench, engine: Engine, peer: Any, load: Load, repeats: int
) -> list[float]:
    """Time of the unavoidable matrix products over our time, per decoding step.

    The prompt is computed beforehand, for both; sampling and private attention are ours to pay.
    """
    floor = baselines.Floor(peer, load)
    fractions = []
    for repeat in range(repeats):
        if bench.out_of_time():
            break
        prompt = prompt_of(engine.info.vocab_size, load, bench.seed, 1000 + repeat)
        prefix = await engine.open(prompt)
        await engine.next_logprobs([prefix], top_k=1)
        begin = time.perf_counter()
        await answers_of(engine, prefix, load, bench.seed + repeat)
        step_s = (time.perf_counter() - begin) / load.new_tokens
        prefix.release()
        floor_s = floor.seconds_per_step(load.new_tokens)
        bench.say(f"floor {floor_s * 1e3:.2f} ms a step, ours {step_s * 1e3:.2f} ms")
        fractions.append(floor_s / step_s)
    return fractions


def unique_tokens(prompt: TokenIds, answers: list[TokenIds]) -> int:
    """Nodes of the trie over prompt and answers."""
    nodes = {answer[:size] for answer in answers for size in range(1, len(answer) + 1)}
    return len(prompt) + len(nodes)
