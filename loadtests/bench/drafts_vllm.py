"""Drafters inside real vLLM: accepted tokens per step and speed, ours beside vLLM's own.

    .venv-vllm/bin/python -m loadtests.bench.drafts_vllm '{"prompts": 48, "rounds": 3, "batch": 4}'

Runs in vLLM's environment and prints one line of JSON. All contenders run on the bundled sapling in
float32, side by side; in each round they take turns on the same problems, which nobody has seen
before. Drafters that learn keep what earlier rounds taught.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engines.base import Continuation, Sampling, TokenIds
from engines.errors import ModelLoadError
from loadtests.peers import servers
from loadtests.peers.blocks import prompt_of, word_problems

if TYPE_CHECKING:
    from engines.vllm_engine import VllmEngine

T = TypeVar("T")
PLAIN: Final = "plain"
_ONE_THREAD: Final = {"NUMBA_NUM_THREADS": "1"}  # vLLM's ngram would wait for cores, not for data
_MARK: Final = '{"outcomes"'  # how the line begins; vLLM's log goes to the same place


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        contenders: Of `options_of`; `plain` drafts nothing.
        prompts: Problems in all rounds together.
        rounds: Parts that they are cut into.
        batch: Problems in flight.
        temperature: Of all answers.
        max_tokens: Of an answer.
        draft_tokens: The longest draft of everybody.
        seed: Of problems and answers.
    """

    contenders: tuple[str, ...] = (PLAIN, "adaptive", "ngram", "suffix")
    prompts: int = 48
    rounds: int = 3
    batch: int = 1
    temperature: float = 0.0
    max_tokens: int = 200
    draft_tokens: int = 8
    seed: int = 0


@dataclass
class Outcome:
    """What a contender did.

    Attributes:
        tokens: Drawn by round.
        seconds: By round.
        drafted: Tokens that vLLM verified.
        accepted: Of these, those that the model drew as well.
        mismatches: Answers that differ from `plain`; only a greedy one is bound to be the same.
        draft_us: Microseconds in our drafter for a row and a step; None for vLLM's own.
    """

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    mismatches: int = 0
    draft_us: float | None = None

    @property
    def accepted_per_step(self) -> float:
        """A step of one answer draws what it accepts and one token more."""
        return self.accepted / max(1, sum(self.tokens) - self.accepted)

    @property
    def tokens_per_s(self) -> float:
        """Over all rounds."""
        return sum(self.tokens) / max(1e-9, sum(self.seconds))


@dataclass(frozen=True)
class Measured:
    """All of it.

    Attributes:
        outcomes: By contender.
        missing: Contenders that do not start here, and why.
    """

    outcomes: Mapping[str, Outcome]
    missing: Mapping[str, str]

    def to_json(self) -> str:
        """One line, with the figures that follow from the counts."""
        outcomes = {
            name: {
                **asdict(one),
                "accepted_per_step": round(one.accepted_per_step, 4),
                "tokens_per_s": round(one.tokens_per_s, 1),
            }
            for name, one in self.outcomes.items()
        }
        return json.dumps({"outcomes": outcomes, "missing": dict(self.missing)})

    @classmethod
    def from_json(cls, line: str) -> Measured:
        """Read `to_json` back."""
        found = json.loads(line)
        for one in found["outcomes"].values():
            del one["accepted_per_step"], one["tokens_per_s"]
        return cls({n: Outcome(**one) for n, one in found["outcomes"].items()}, found["missing"])


def measured_in(python: Path, plan: Plan) -> Measured:
    """Measure in vLLM's environment.

    Raises:
        CalledProcessError: It failed; what it said was printed.
    """
    command = [str(python), "-m", "loadtests.bench.drafts_vllm", json.dumps(asdict(plan))]
    environment = servers.bare_environment() | servers.vllm_environment() | _ONE_THREAD
    done = subprocess.run(
        command, cwd=servers.ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    (line,) = [one for one in done.stdout.splitlines() if one.startswith(_MARK)]
    return Measured.from_json(line)


def options_of(contender: str, draft_tokens: int) -> dict[str, Any]:
    """Engine options of a contender: nothing, vLLM's own method, or a drafter of ours."""
    if contender == PLAIN:
        return {}
    if contender == "ngram":
        lookup = {"prompt_lookup_min": 2, "prompt_lookup_max": 5}
        own = {"method": "ngram", "num_speculative_tokens": draft_tokens, **lookup}
        return {"speculative_config": own}
    if contender == "suffix":
        return {"speculative_config": {"method": "suffix", "num_speculative_tokens": draft_tokens}}
    return {"drafter": contender, "draft_tokens": draft_tokens}


async def measure(plan: Plan) -> Measured:
    """Start everybody, take turns, stop everybody."""
    from engines.vllm_async import open_engine

    engines: dict[str, VllmEngine] = {}
    missing: dict[str, str] = {}
    async with AsyncExitStack() as running:
        for name in plan.contenders:
            options = {**servers.VLLM_OPTIONS, **options_of(name, plan.draft_tokens)}
            try:
                engines[name] = open_engine(name, str(servers.GENERATOR_DIR), options)
            except ModelLoadError as err:
                missing[name] = str(err)
                continue
            running.push_async_callback(engines[name].aclose)
        outcomes = await take_turns(engines, plan)
        for name, engine in engines.items():
            report = await engine.drafter_report()
            if report is not None:
                outcomes[name].draft_us = 1e6 * report.seconds / max(1, report.rows)
    return Measured(outcomes, missing)


async def take_turns(engines: Mapping[str, VllmEngine], plan: Plan) -> dict[str, Outcome]:
    """Every round in another order."""
    outcomes = {name: Outcome() for name in engines}
    problems = word_problems(plan.prompts, plan.seed)
    how = Sampling(
        temperature=plan.temperature, max_tokens=plan.max_tokens, deltas=False, logps=False
    )
    texts = [prompt_of(problem) for problem in problems]
    names = list(engines)
    for name in names:  # what only a first request costs
        await answers(engines[name], ["1 + 1?"], how, plan)
    for turn in range(plan.rounds):
        part = texts[turn :: plan.rounds]
        drawn: dict[str, list[TokenIds]] = {}
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            engine, outcome = engines[name], outcomes[name]
            before, started = engine.drafting, time.perf_counter()
            drawn[name] = await answers(engine, part, how, plan)
            outcome.seconds.append(time.perf_counter() - started)
            outcome.tokens.append(sum(map(len, drawn[name])))
            outcome.drafted += engine.drafting.drafted - before.drafted
            outcome.accepted += engine.drafting.accepted - before.accepted
        for name in names:
            pairs = zip(drawn[name], drawn.get(PLAIN, drawn[name]), strict=True)
            outcomes[name].mismatches += sum(ours != plain for ours, plain in pairs)
    return outcomes


async def answers(
    engine: VllmEngine, texts: Sequence[str], how: Sampling, plan: Plan
) -> list[TokenIds]:
    """All tokens of an answer to each, `plan.batch` at a time."""
    places = asyncio.Semaphore(plan.batch)

    async def answer(at: int, text: str) -> TokenIds:
        prompt = engine.render([{"role": "user", "content": text}])
        root = await engine.open(prompt)
        async with aclosing(engine.sample(root, how, seeds=[plan.seed * 1000 + at])) as items:
            async for item in items:
                if isinstance(item, Continuation):
                    return (*item.token_ids, *item.overrun_ids)
        raise ValueError("an answer without an end")

    return await asyncio.gather(
        *(_in_turn(places, answer(at, text)) for at, text in enumerate(texts))
    )


async def _in_turn(places: asyncio.Semaphore, work: Awaitable[T]) -> T:
    async with places:
        return await work


def main() -> None:
    """Read the plan, print the outcome."""
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    if "contenders" in given:
        given["contenders"] = tuple(given["contenders"])
    print(asyncio.run(measure(Plan(**given))).to_json(), flush=True)


if __name__ == "__main__":
    main()
