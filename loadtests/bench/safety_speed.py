"""Wall time of one search of 32 tokens at width 16: ours, a trie of clones, and no cache at all.

All three give the same tokens, or the bench fails. They take turns on the same prompts, a new one
for each repeat, so that no cache is warm; a ratio is taken within a repeat, and the median over
repeats is reported with its 95 % interval. Prompt processing is part of the time, loading is not.
The end of an answer is not allowed, so that everybody makes all steps. The nucleus holds `TOP_P`,
which keeps nearly all beams taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from scipy.stats import binom

from engines.base import Engine, Sampling, TokenIds
from engines.embedded.compute import compute_thread
from loadtests.bench.figures import Bench, BenchError, Journal, code_hash
from loadtests.bench.safety_peers import (
    CloneTrie,
    Knobs,
    NextLogits,
    Recompute,
    RewardBias,
    load_peer,
    search,
)
from loadtests.bench.safety_runs import SAFFRON, Asked
from reward_models.base import RewardModel
from reward_models.multifurcation_files import read_files
from search.run import Run, RunRequest

WIDTH: Final = 16
NEW_TOKENS: Final = 32
TOP_P: Final = 0.99
PEERS: Final = ("clone_trie", "recompute")
_REPEATS: Final = 15


@dataclass(frozen=True)
class Race:
    """What all three run on.

    Attributes:
        engine: Our generator.
        rewards: Our multifurcation model.
        generator: The generator's directory.
        reward_model: The multifurcation model's.
        prompt: Prompt number so and so.
    """

    engine: Engine
    rewards: RewardModel
    generator: Path
    reward_model: Path
    prompt: Callable[[int], Asked]


@dataclass(frozen=True)
class Timed:
    """A search's answer, its seconds, and the beams that went on at a step, in the mean."""

    tokens: TokenIds
    seconds: float
    live: float = 0.0


def figure_name(peer: str) -> str:
    """The figure of a peer."""
    return f"safety.speedup_vs_{peer}"


async def measure(bench: Bench, race: Race) -> None:
    """Both ratios.

    Raises:
        BenchError: A peer's tokens are not ours.
    """
    peers = [peer for peer in PEERS if bench.wants(figure_name(peer))]
    if not peers:
        return
    contenders = Peers(race)
    await _ours(race, race.prompt(-1), "warm")  # first use of the kernels
    journal = Journal(bench.out / "safety.turns.jsonl")
    turns = []
    for repeat in range(bench.at_most(_REPEATS)):
        if bench.out_of_time():
            break
        key = f"{repeat}:{bench.seed}:{','.join(peers)}:{code_hash()}"
        if key not in journal.rows:
            journal.add(key, await _turn(bench, race, contenders, peers, repeat))
        turns.append(journal.rows[key])
    for peer in peers if turns else ():
        ratios = [turn[peer] / turn["ours"] for turn in turns]
        low, high = interval(ratios)
        bench.put(
            figure_name(peer),
            median(ratios),
            unit="ratio",
            n=len(ratios),
            low=low,
            high=high,
            better="higher",
        )


async def _turn(
    bench: Bench, race: Race, contenders: Peers, peers: Sequence[str], repeat: int
) -> dict[str, float]:
    """Seconds of everybody on one prompt; the order turns round from repeat to repeat."""
    prompt = race.prompt(repeat)
    order = ["ours", *peers] if repeat % 2 == 0 else [*reversed(peers), "ours"]
    found = {}
    for name in order:
        if name == "ours":
            found[name] = await _ours(race, prompt, f"turn {repeat}")
        else:
            found[name] = await contenders.run(name, prompt)
    for name in peers:
        if found[name].tokens != found["ours"].tokens:
            raise BenchError(f"turn {repeat}: {name} gives other tokens than ours")
    words = ", ".join(f"{name} {one.seconds:.3f} s" for name, one in found.items())
    bench.say(f"turn {repeat}, {found['ours'].live:.1f} live beams a step: {words}")
    return {name: one.seconds for name, one in found.items()}


async def _ours(race: Race, prompt: Asked, tenant: str) -> Timed:
    request = RunRequest(
        strategy=SAFFRON,
        params={"width": WIDTH, "top_p": TOP_P, "min_new_tokens": NEW_TOKENS},
        messages=prompt.messages,
        continue_final=prompt.is_begun,
        sampling=Sampling(max_tokens=NEW_TOKENS, tenant=tenant),
        seed=0,
        tenant=tenant,
    )
    begin = time.perf_counter()
    result = await Run(request, engine=race.engine, judge=race.rewards).result()
    seconds = time.perf_counter() - begin
    return Timed(result.answers[0].token_ids, seconds, result.spent.reward_calls / NEW_TOKENS)


class Peers:
    """The same models in Hugging Face's classes, on the engine's compute thread.

    A second team of OpenMP threads would slow all contenders.
    """

    def __init__(self, race: Race) -> None:
        files = read_files(race.reward_model, None)
        self._race = race
        self._call = compute_thread("cpu").call
        self._policy: Any = self._call(lambda: load_peer(race.generator))
        self._rewards: Any = self._call(lambda: load_peer(files.base, files.tensors))
        self._head = RewardBias(files.bias, files.unseen)
        self._knobs = Knobs(WIDTH, TOP_P, NEW_TOKENS, race.engine.info.eos_ids)

    async def run(self, name: str, prompt: Asked) -> Timed:
        """A search of one of `PEERS`."""
        make: Callable[[Any], NextLogits] = CloneTrie if name == PEERS[0] else Recompute
        tokens = self._race.engine.render(prompt.messages, continue_final=prompt.is_begun)
        assert isinstance(tokens, tuple)
        claim = await self._race.rewards.open(prompt.messages)
        read = claim.token_ids
        claim.release()

        def timed() -> Timed:
            begin = time.perf_counter()
            found = search(
                tokens, read, make(self._policy), make(self._rewards), self._head, self._knobs
            )
            return Timed(found, time.perf_counter() - begin)

        return self._call(timed)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median; the extremes where there are few values."""
    ordered, count = sorted(values), len(values)
    at = max(0, int(binom.ppf(0.025, count, 0.5)) - 1)
    return ordered[at], ordered[count - 1 - at]
