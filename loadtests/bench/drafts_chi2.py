"""Whether sampled sequences have the model's own distribution when drafts are verified.

A small random model may say four tokens (all others are banned), three times: 64 sequences whose
exact probabilities are products of its own next-token distributions. 100,000 sequences are drawn
through the real engine with the drafter on, and as many by the published acceptance rule over the
same distributions. The first p is below 0.001 in one run of a thousand by chance.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Final, TypeAlias

from scipy.stats import chisquare

from engines.base import Continuation, Sampling, TokenIds
from engines.drafters.base import ROOT, TokenTree
from engines.drafters.verify import published_walk
from engines.embedded.compute import compute_thread
from engines.embedded.engine import EmbeddedEngine, open_engine
from loadtests.bench.drafts_exact import draft_always
from loadtests.bench.figures import Bench
from loadtests.bench.random_llama import Size, write_random_llama
from loadtests.bench.saplings import OPTIONS

SAID: Final = (20, 21, 22, 23)
LENGTH: Final = 3
_PROMPT: Final = tuple(range(30, 46))
_NODES: Final = 6
_SEQUENCES: Final = 100_000
_EACH: Final = 250  # branches of a call
_PER_N: Final = 200  # sequences for each of ``--n``
_SHAPE: Final = Size(32, 64, 2, 2, 2, 320, 256)
_LEAN: Final = (1.5, 0.5, 0.0, -1.0)
"""Added to the logits, so that some tokens are worth drafting."""

Exact: TypeAlias = dict[TokenIds, dict[int, float]]
"""Probabilities of the next token after each beginning."""


async def put(bench: Bench, folder: Path) -> None:
    """Both p-values."""
    count = _SEQUENCES if bench.n is None else min(_SEQUENCES, bench.n * _PER_N)
    compute_thread("cpu").call(lambda: write_random_llama(folder, seed=bench.seed, size=_SHAPE))
    engine = open_engine("toy", str(folder), OPTIONS)
    try:
        draft_always(engine, _NODES)
        exact = await exact_of(engine)
        drawn, accepted = await through_the_engine(engine, count, bench.seed)
    finally:
        await engine.aclose()
    bench.say(f"{count} sequences, {accepted} drafted tokens accepted")
    bench.put("drafts.chi2_p", p_of(drawn, exact), unit="probability", n=count)
    biased = by_the_published_rule(exact, count, bench.seed)
    name = "drafts.chi2_p_published_rule"
    bench.put(name, p_of(biased, exact), unit="probability", n=count)


def sampling(size: int) -> Sampling:
    """Three of the four tokens, drafted by `adaptive`."""
    return Sampling(
        max_tokens=LENGTH,
        ban_ids=frozenset(range(size)) - frozenset(SAID),
        logit_bias=dict(zip(SAID, _LEAN, strict=True)),
        drafter="adaptive",
        deltas=False,
    )


async def exact_of(engine: EmbeddedEngine) -> Exact:
    """The target's own distribution after every beginning."""
    root = await engine.open(_PROMPT)
    found: Exact = {}
    for length in range(LENGTH):
        beginnings = list(product(SAID, repeat=length))
        prefixes = await engine.extend([(root, beginning) for beginning in beginnings])
        rows = await engine.next_logprobs(prefixes, ids=SAID)
        for beginning, row, prefix in zip(beginnings, rows, prefixes, strict=True):
            weights = [math.exp(logp + lean) for logp, lean in zip(row.logps, _LEAN, strict=True)]
            total = sum(weights)
            found[beginning] = {t: w / total for t, w in zip(SAID, weights, strict=True)}
            prefix.release()
    root.release()
    return found


async def through_the_engine(
    engine: EmbeddedEngine, count: int, seed: int
) -> tuple[Counter[TokenIds], int]:
    """Sequences of the engine, and how many drafted tokens were accepted in them."""
    how = sampling(engine.info.vocab_size)
    drawn: Counter[TokenIds] = Counter()
    accepted = 0
    root = await engine.open(_PROMPT)
    for first in range(0, count, _EACH):
        seeds = [seed * _SEQUENCES + at for at in range(first, min(first + _EACH, count))]
        async for item in engine.sample(root, how, n=len(seeds), seeds=seeds):
            if isinstance(item, Continuation):
                drawn[item.token_ids] += 1
                accepted += item.accepted
                item.prefix.release()
    root.release()
    return drawn, accepted


def by_the_published_rule(exact: Exact, count: int, seed: int) -> Counter[TokenIds]:
    """Sequences that `published_walk` accepts: the two likeliest tokens drafted, each with one."""
    draw = random.Random(f"published:{seed}")
    drawn: Counter[TokenIds] = Counter()
    for _ in range(count):
        said: TokenIds = ()
        while len(said) < LENGTH:
            said += _walked(exact, said, draw)[: LENGTH - len(said)]
        drawn[said] += 1
    return drawn


def _walked(exact: Exact, said: TokenIds, rng: random.Random) -> TokenIds:
    first, second, *_ = sorted(exact[said], key=lambda token: -exact[said][token])
    tree = TokenTree((first, second), (ROOT, ROOT), (0.0, 0.0))

    def draw(node: int) -> int:
        row = exact.get(said if node == ROOT else (*said, tree.tokens[node]))
        if row is None:  # past the end: cut off by the caller
            return SAID[0]
        [token] = rng.choices(list(row), list(row.values()))
        return token

    return published_walk(((0,), (1,)), tree, draw).emitted


def p_of(drawn: Counter[TokenIds], exact: Exact) -> float:
    """Of Pearson's chi-square test of all sequences against their exact probabilities."""
    sequences = list(product(SAID, repeat=LENGTH))
    count = drawn.total()
    expected = []
    for sequence in sequences:
        chance = float(count)
        for at, token in enumerate(sequence):
            chance *= exact[sequence[:at]][token]
        expected.append(chance)
    return float(chisquare([drawn[sequence] for sequence in sequences], expected).pvalue)
