"""How many prompt tokens an engine computes when branches grow step by step.

    python -m loadtests.bench.engines_sharing '{"kind": "vllm", "model": "models/sapling_sums", …}'

Runs in the environment of the engine, opened as `bough serve` opens it, and prints one line of
JSON. Every branch of every round sends all its tokens again; what the engine does not find in its
cache it computes. The engine's own reports are counted, once from what it says of each child and
once from its counters; the larger number stands.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

from engines.base import Continuation, Engine, Prefix, Sampling, TokenIds
from loadtests.peers.blocks import prompt_of, word_problems
from search.plugins import load


@dataclass(frozen=True)
class Growth:
    """A prompt, branches from it, and rounds of one step for each.

    Attributes:
        kind: Engine plugin.
        model: As in the settings.
        options: As in the settings.
        block_tokens: What the engine's cache keeps together.
        prompt_tokens: Length of the prompt.
        branches: Drawn from the prompt.
        rounds: Steps that every branch gains after its first.
        step_tokens: Tokens of a step.
        seed: Of prompt and steps.
    """

    kind: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    block_tokens: int = 32
    prompt_tokens: int = 512
    branches: int = 16
    rounds: int = 3
    step_tokens: int = 24
    seed: int = 0


@dataclass(frozen=True)
class Shared:
    """What came of it.

    Attributes:
        sent: Prompt tokens of all requests.
        computed: Of those, run through the model.
        unique: Nodes of the trie over everything that was sent.
        bound: `unique` and one block for each branch and round.
    """

    sent: int
    computed: int
    unique: int
    bound: int


async def measure(engine: Engine, growth: Growth) -> Shared:
    """Grow on an engine whose cache is cold for this prompt."""
    prompt = prompt_for(engine, growth)
    last = growth.step_tokens * (growth.rounds + 1)
    # Nobody may end before the last round: an answer that is over could not grow.
    how = Sampling(
        max_step_tokens=growth.step_tokens,
        max_tokens=last + 1,
        min_tokens=last,
        deltas=False,
        logps=False,  # as in a search where nobody reads them
    )
    before = engine.stats()
    root = await engine.open(prompt)
    sent, found = [prompt] * growth.branches, 0
    seeds = range(growth.seed * 1000, growth.seed * 1000 + growth.branches)
    leaves = [child async for child in _children(engine, root, how, list(seeds))]
    found += sum(child.cached_tokens for child in leaves)
    for turn in range(1, growth.rounds + 1):
        sent += [leaf.prefix.token_ids for leaf in leaves]
        grown = await asyncio.gather(
            *(
                _child(engine, leaf, how, seed + turn * 100)
                for leaf, seed in zip(leaves, seeds, strict=True)
            )
        )
        for leaf in leaves:
            leaf.prefix.release()
        leaves = list(grown)
        found += sum(child.cached_tokens for child in leaves)
    for claim in (root, *(leaf.prefix for leaf in leaves)):
        claim.release()
    after = engine.stats()
    total = sum(map(len, sent))
    counted = after.tokens_looked_up - before.tokens_looked_up
    missed = counted - (after.tokens_hit - before.tokens_hit)
    unique = unique_tokens(sent)
    bound = unique + growth.branches * growth.rounds * growth.block_tokens
    return Shared(total, max(total - found, missed), unique, bound)


async def _children(
    engine: Engine, prefix: Prefix, how: Sampling, seeds: list[int]
) -> AsyncIterator[Continuation]:
    async with aclosing(engine.sample(prefix, how, n=len(seeds), seeds=seeds)) as items:  # type: ignore[type-var]
        async for item in items:
            if isinstance(item, Continuation):
                yield item


async def _child(engine: Engine, leaf: Continuation, how: Sampling, seed: int) -> Continuation:
    (child,) = [child async for child in _children(engine, leaf.prefix, how, [seed])]
    return child


def prompt_for(engine: Engine, growth: Growth) -> TokenIds:
    """Held-out word problems, one after the other, cut at the length wanted."""
    problems = word_problems(growth.prompt_tokens // 16, growth.seed)
    ids = engine.encode("\n".join(map(prompt_of, problems)))
    if len(ids) < growth.prompt_tokens:
        raise ValueError(f"the problems have {len(ids)} tokens, not {growth.prompt_tokens}")
    return ids[: growth.prompt_tokens]


def unique_tokens(sequences: Sequence[TokenIds]) -> int:
    """Nodes of the trie over `sequences`."""
    return len({hash(one[:size]) for one in set(sequences) for size in range(1, len(one) + 1)})


async def main(growth: Growth) -> None:
    """Open the engine, measure, print."""
    engine: Engine = load("bough.engines")[growth.kind]("bench", growth.model, growth.options)
    try:
        print(json.dumps(asdict(await measure(engine, growth))))
    finally:
        await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main(Growth(**json.loads(sys.argv[1]))))
