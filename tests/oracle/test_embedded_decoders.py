"""The embedded engine against Hugging Face: tokens, log-probabilities, hidden states."""

from __future__ import annotations

import asyncio
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from engines.base import Continuation, Finish, Prefix, Sampling, TokenIds
from engines.embedded.engine import EmbeddedEngine
from tests.embedded_models import (
    VARIANTS,
    Variant,
    children,
    load_theirs,
    open_tiny,
    require_idle,
    write_model,
)

GREEDY = Sampling(temperature=0.0, max_tokens=16)
NATS = 1e-4


class Oracle:
    """One model directory in both implementations."""

    def __init__(self, directory: Path, variant: Variant) -> None:
        self.directory = directory
        self.theirs: PreTrainedModel = load_theirs(directory, variant.kind)
        self.vocab_size: int = self.theirs.config.vocab_size

    @torch.no_grad()
    def logps(self, tokens: TokenIds) -> torch.Tensor:
        """(tokens, vocab) log-probabilities after every token."""
        return self.theirs(torch.tensor([tokens])).logits[0].log_softmax(-1)

    @torch.no_grad()
    def hidden(self, tokens: TokenIds) -> torch.Tensor:
        """(tokens, width) states after the final norm."""
        return self.theirs.model(torch.tensor([tokens])).last_hidden_state[0]

    def require_logps(self, prompt: TokenIds, child: Continuation) -> torch.Tensor:
        """The child's log-probabilities are theirs, of which all are returned, (tokens, vocab)."""
        rows = self.logps(prompt + child.token_ids)[len(prompt) - 1 : -1]
        wanted = torch.tensor(child.token_ids, dtype=torch.int64).unsqueeze(1)
        logps = rows.gather(1, wanted).squeeze(1).tolist()
        assert child.logps == pytest.approx(logps, abs=NATS)
        return rows

    def require_greedy(self, prompt: TokenIds, child: Continuation, bans: tuple[int, ...]) -> None:
        """Every token is the argmax of theirs after all before it, with its log-probability."""
        rows = self.require_logps(prompt, child)
        rows[:, list(bans)] = -torch.inf
        assert rows.argmax(1).tolist() == list(child.token_ids)

    def prompts(self, count: int, *, seed: int = 0, longest: int = 60) -> list[TokenIds]:
        """Random token ids; a third of them begin alike."""
        draw = random.Random(seed)
        common = tuple(draw.randrange(self.vocab_size) for _ in range(longest // 2))
        made = []
        for i in range(count):
            size = draw.randint(1, longest // 2)
            tail = tuple(draw.randrange(self.vocab_size) for _ in range(size))
            made.append((common[: draw.randint(1, len(common))] if i % 3 == 0 else ()) + tail)
        return made


@pytest.fixture(scope="module")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    variant = next(v for v in VARIANTS if v.name == "llama-gqa")
    return Oracle(write_model(tmp_path_factory.mktemp("gqa"), variant), variant)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
async def test_greedy_tokens_and_logps_are_theirs(variant: Variant, tmp_path: Path) -> None:
    oracle = Oracle(write_model(tmp_path, variant), variant)
    num_shards = sum(entry.endswith(".safetensors") for entry in os.listdir(tmp_path))
    assert (num_shards > 2) == (variant.max_shard_size != "1GB")
    engine = open_tiny(tmp_path)
    eos = tuple(engine.info.eos_ids)
    how = Sampling(temperature=0.0, max_tokens=16, ban_ids=frozenset(eos))
    prompts = oracle.prompts(12)
    for prompt in prompts:
        (child,) = await children(engine, prompt, how)
        assert child.finish is Finish.LENGTH
        assert len(child.token_ids) == 16
        oracle.require_greedy(prompt, child, eos)
    require_idle(engine)
    await engine.aclose()


async def test_a_hundred_prompts_at_once_greedily(gqa: Oracle) -> None:
    """Each prompt's children run among all others, in chunks, over a warm and a cold cache."""
    engine = open_tiny(gqa.directory, chunk_tokens=32, kv_tokens=8192)
    prompts = gqa.prompts(100, seed=1)
    done = await asyncio.gather(*(children(engine, prompt, GREEDY) for prompt in prompts))
    for prompt, (child,) in zip(prompts, done, strict=True):
        gqa.require_greedy(prompt, child, ())
        if child.finish is Finish.STOP_TOKEN:
            row = gqa.logps(prompt + child.token_ids)[-1]
            assert int(row.argmax()) == child.matched
    assert sum(child.cached_tokens for (child,) in done) > 0
    require_idle(engine)
    await engine.aclose()


async def test_generate_itself_gives_the_same_tokens(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory)
    for prompt in gqa.prompts(15, seed=2):
        (child,) = await children(engine, prompt, GREEDY)
        with torch.inference_mode():
            ids = gqa.theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
            )[0].tolist()
        assert list(prompt + child.token_ids + child.overrun_ids) == ids
    await engine.aclose()


async def test_one_token_prompts_and_pages_of_one_token(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory, page_tokens=1, kv_tokens=400)
    for prompt in ((5,), (7,), (5, 9), gqa.prompts(1, longest=40)[0]):
        (child,) = await children(engine, prompt, GREEDY)
        gqa.require_greedy(prompt, child, ())
    require_idle(engine)
    await engine.aclose()


@pytest.mark.parametrize("page_tokens", [3, 16, 64])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 1024])
async def test_chunks_and_pages_change_nothing(
    gqa: Oracle, chunk_tokens: int, page_tokens: int
) -> None:
    engine = open_tiny(
        gqa.directory, chunk_tokens=chunk_tokens, page_tokens=page_tokens, kv_tokens=2048
    )
    for prompt in gqa.prompts(4, seed=3):
        for _ in ("cold", "warm"):
            (child,) = await children(engine, prompt, GREEDY)
            gqa.require_greedy(prompt, child, ())
    require_idle(engine)
    await engine.aclose()


async def test_cached_and_uncached_give_the_same_tokens(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory)
    how = Sampling(temperature=0.9, max_tokens=24)
    (prompt,) = gqa.prompts(1, seed=4)
    (cold,) = await children(engine, prompt, how, (5,))
    (warm,) = await children(engine, prompt, how, (5,))
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == len(prompt) - 1
    assert warm.computed_tokens < cold.computed_tokens
    assert (warm.token_ids, warm.text, warm.finish) == (cold.token_ids, cold.text, cold.finish)
    (other,) = await children(engine, prompt, how, (5,), tenant="other")
    assert other.cached_tokens == 0
    assert other.token_ids == cold.token_ids
    await engine.aclose()


async def test_a_tree_of_branches_gives_what_each_gives_alone(gqa: Oracle) -> None:
    """Two levels of forks under one prompt, all levels sampled together."""
    engine = open_tiny(gqa.directory)
    how = Sampling(temperature=1.0, max_step_tokens=9)
    (prompt,) = gqa.prompts(1, seed=5)
    root = await engine.open(prompt)
    level, taken = [root], [root]
    together: dict[tuple[TokenIds, int], Continuation] = {}
    for _ in range(3):
        streams = [step(engine, prefix, how) for prefix in level]
        done = [child for many in await asyncio.gather(*streams) for child in many]
        taken += [child.prefix for child in done]
        parents = [prefix for prefix in level for _ in SEEDS]
        for parent, child in zip(parents, done, strict=True):
            together[parent.token_ids, SEEDS[child.index]] = child
        level = [child.prefix for child in done if child.finish.is_open][:4]
    assert len(together) > 15
    for prefix in taken:
        prefix.release()
    require_idle(engine)
    await engine.aclose()
    for (tokens, seed), child in together.items():
        gqa.require_logps(tokens, child)
        lone = open_tiny(gqa.directory)
        opened = await lone.open(prompt)
        (prefix,) = await lone.extend([(opened, tokens[len(prompt) :])])
        alone = await step(lone, prefix, how, (seed,))
        assert alone[0].token_ids == child.token_ids
        await lone.aclose()


SEEDS = (11, 12, 13)


async def step(
    engine: EmbeddedEngine, prefix: Prefix, how: Sampling, seeds: tuple[int, ...] = SEEDS
) -> list[Continuation]:
    """Children of a claim, in order."""
    items = engine.sample(prefix, how, n=len(seeds), seeds=seeds)
    done = [item async for item in items if isinstance(item, Continuation)]
    return sorted(done, key=lambda child: child.index)


async def test_score_is_theirs(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory, chunk_tokens=7)
    for prompt in gqa.prompts(6, seed=6):
        ids = gqa.prompts(1, seed=len(prompt))[0][:20]
        prefix = await engine.open(prompt)
        for _ in ("cold", "warm"):
            got = await engine.score(prefix, ids)
            rows = gqa.logps(prompt + ids)[len(prompt) - 1 : -1]
            expected = rows.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
            assert np.abs(expected.numpy() - np.array(got)).max() < NATS
        assert await engine.score(prefix, ()) == ()
        prefix.release()
    require_idle(engine)
    await engine.aclose()


async def test_next_logprobs_are_theirs(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory)
    prompts = gqa.prompts(5, seed=7)
    prefixes = [await engine.open(prompt) for prompt in prompts]
    everything = await engine.next_logprobs(prefixes, ids=range(gqa.vocab_size))
    top = await engine.next_logprobs(prefixes, top_k=5)
    nucleus = await engine.next_logprobs(prefixes, mass=0.9)
    for i, prompt in enumerate(prompts):
        row = gqa.logps(prompt)[-1]
        assert np.abs(np.array(everything[i].logps) - row.numpy()).max() < NATS
        assert everything[i].tail_mass == pytest.approx(0.0, abs=1e-5)
        assert list(top[i].ids) == row.topk(5).indices.tolist()
        assert top[i].tail_mass == pytest.approx(
            1 - float(row.exp().topk(5).values.sum()), abs=1e-5
        )
        held = np.exp(nucleus[i].logps)
        assert held.sum() >= 0.9 - 1e-6
        assert held[:-1].sum() < 0.9
        assert list(nucleus[i].ids) == row.topk(len(held)).indices.tolist()
    for prefix in prefixes:
        prefix.release()
    require_idle(engine)
    await engine.aclose()


async def test_embed_is_the_mean_of_their_hidden_states(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory, chunk_tokens=9)
    prompts = gqa.prompts(5, seed=8)
    prefixes = [await engine.open(prompt) for prompt in prompts]
    counts = [1, 3, 10_000, 0, 5]
    got = await engine.embed(prefixes, counts)
    assert got.dtype == np.float32
    assert got.shape == (5, 32)
    for row, prompt, count in zip(got, prompts, counts, strict=True):
        expected = gqa.hidden(prompt)[-min(max(count, 1), len(prompt)) :].mean(0)
        assert np.abs(row - expected.numpy()).max() < 1e-4
    assert (await engine.embed([], [])).shape == (0, 32)
    for prefix in prefixes:
        prefix.release()
    require_idle(engine)
    await engine.aclose()


async def test_top_logps_are_the_likeliest(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory)
    (prompt,) = gqa.prompts(1, seed=9)
    how = Sampling(temperature=1.3, top_p=0.9, max_tokens=8, logprobs=4)
    (child,) = await children(engine, prompt, how, (3,))
    assert child.top_logps is not None
    rows = gqa.logps(prompt + child.token_ids)[len(prompt) - 1 :]
    for row, tops in zip(rows, child.top_logps, strict=False):
        assert [token for token, _ in tops] == row.topk(4).indices.tolist()
        assert np.abs(np.array([v for _, v in tops]) - row.topk(4).values.numpy()).max() < NATS
    assert len(child.top_logps) == len(child.token_ids)
    await engine.aclose()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
async def test_bfloat16_runs_and_stays_close(kind: str, tmp_path: Path) -> None:
    variant = Variant(kind, kind=kind)
    oracle = Oracle(write_model(tmp_path, variant), variant)
    engine = open_tiny(tmp_path, dtype="bfloat16")
    prompts = oracle.prompts(6, seed=10)
    prefixes = [await engine.open(prompt) for prompt in prompts]
    rows = await engine.next_logprobs(prefixes, ids=range(oracle.vocab_size))
    for prompt, row in zip(prompts, rows, strict=True):
        expected = oracle.logps(prompt)[-1].exp().numpy()
        assert np.abs(np.exp(row.logps) - expected).sum() < 0.35  # total variation, 8 bits a weight
        (child,) = await children(engine, prompt, Sampling(max_tokens=8), (1,))
        assert all(math.isfinite(logp) and logp <= 0 for logp in child.logps)
    for prefix in prefixes:
        prefix.release()
    require_idle(engine)
    await engine.aclose()


async def test_a_sequence_may_fill_the_context(gqa: Oracle) -> None:
    engine = open_tiny(gqa.directory)
    context = engine.info.context_tokens
    assert context == 192
    prompt = tuple(i % 250 + 10 for i in range(context - 3))
    how = Sampling(temperature=0.0, ban_ids=engine.info.eos_ids)
    (child,) = await children(engine, prompt, how)
    assert child.finish is Finish.CONTEXT
    assert len(child.token_ids) == 3
    gqa.require_greedy(prompt, child, tuple(engine.info.eos_ids))
    await engine.aclose()
