"""Branches that say the same share rows; what each says and keeps is what it would alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engines.base import Continuation, Prefix, Sampling, TokenIds
from engines.embedded.engine import EmbeddedEngine
from tests.embedded_models import (
    VARIANTS,
    children,
    load_theirs,
    open_tiny,
    require_idle,
    write_model,
)

LLAMA = next(one for one in VARIANTS if one.name == "llama-gqa")
SEEDS = tuple(range(12))
NATS = 1e-4


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("twins"), LLAMA)


@pytest.fixture(scope="module")
def prompt(directory: Path) -> TokenIds:
    draw = random.Random(3)
    vocab = load_theirs(directory).config.vocab_size
    return tuple(draw.randrange(vocab) for _ in range(37))


async def grown(
    engine: EmbeddedEngine, prefix: Prefix, how: Sampling, seeds: tuple[int, ...]
) -> list[Continuation]:
    stream = engine.sample(prefix, how, n=len(seeds), seeds=seeds)
    done = [one async for one in stream if isinstance(one, Continuation)]
    return sorted(done, key=lambda child: child.index)


@torch.no_grad()
def require_theirs(theirs: PreTrainedModel, tokens: TokenIds, child: Continuation) -> None:
    """The child's log-probabilities are Hugging Face's after its own tokens."""
    ids = torch.tensor([tokens + child.token_ids])
    rows = theirs(ids).logits[0].log_softmax(-1)[len(tokens) - 1 : -1]
    wanted = torch.tensor(child.token_ids).unsqueeze(1)
    assert child.logps == pytest.approx(rows.gather(1, wanted).squeeze(1).tolist(), abs=NATS)


@pytest.mark.parametrize("page_tokens", [1, 5, 16])
async def test_twins_part_and_go_on(directory: Path, prompt: TokenIds, page_tokens: int) -> None:
    """Three levels from a sure draw; the second and third read what twins wrote for each other."""
    theirs = load_theirs(directory)
    engine = open_tiny(directory, page_tokens=page_tokens, kv_tokens=8192)
    bans = frozenset(engine.info.eos_ids)
    how = Sampling(temperature=0.1, max_step_tokens=7, ban_ids=bans)
    level = [await engine.open(prompt)]
    taken = list(level)
    for _ in range(3):
        done = await asyncio.gather(*(grown(engine, one, how, SEEDS) for one in level))
        for parent, many in zip(level, done, strict=True):
            for child in many:
                require_theirs(theirs, parent.token_ids, child)
        taken += [child.prefix for many in done for child in many]
        level = [many[at].prefix for many in done for at in (0, 3, 7)][:6]
    texts = {one.token_ids for one in taken}
    for one in taken:
        one.release()
    worker = engine._runtime.worker
    assert 1 < len(texts) < len(taken), "the test needs twins that stay and twins that part"
    assert worker.rows_computed < worker.tokens_computed / 2
    require_idle(engine)
    await engine.aclose()


async def test_each_says_what_it_says_alone(directory: Path, prompt: TokenIds) -> None:
    how = Sampling(temperature=0.5, max_tokens=20)
    engine = open_tiny(directory)
    together = await children(engine, prompt, how, SEEDS)
    worker = engine._runtime.worker
    assert worker.rows_computed < worker.tokens_computed
    for seed, child in zip(SEEDS, together, strict=True):
        (alone,) = await children(engine, prompt, how, (seed,))
        assert (alone.token_ids, alone.finish) == (child.token_ids, child.finish)
    await engine.aclose()


async def test_two_tenants_share_no_row(directory: Path, prompt: TokenIds) -> None:
    """They run side by side, without a full page that would tell them apart."""
    how = Sampling(temperature=0.0, max_tokens=20)
    engine = open_tiny(directory, page_tokens=64)
    await asyncio.gather(*(children(engine, prompt, how, tenant=one) for one in ("a", "b")))
    worker = engine._runtime.worker
    assert worker.tokens_decoded > worker.decode_steps
    assert worker.rows_computed == worker.tokens_computed
    await engine.aclose()
