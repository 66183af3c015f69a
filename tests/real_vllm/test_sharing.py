"""Branches share KV blocks, tenants do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.base import Sampling
from engines.vllm_engine import VllmEngine
from tests.real_vllm.marks import SHARED
from tests.real_vllm.test_sampling import children

pytestmark = SHARED

BLOCK = 32


async def test_siblings_find_the_prompt_and_children_their_parent(tiny: VllmEngine) -> None:
    before = tiny.stats()
    root = await tiny.open(tuple(range(150, 250)))  # three blocks and four tokens
    how = Sampling(max_tokens=80, max_step_tokens=20, ban_ids=tiny.info.eos_ids, deltas=False)
    done = await children(tiny, root, how, range(8))
    cached = sorted(child.cached_tokens for child in done)
    assert cached == [0] + [96] * 7
    total = sum(child.computed_tokens for child in done)
    grown = done
    for _ in range(3):
        grown = [(await children(tiny, child.prefix, how, (1,)))[0] for child in grown]
        for child in grown:
            length = len(child.prefix.token_ids) - len(child.token_ids)
            assert child.cached_tokens >= (length - 1) // BLOCK * BLOCK
            assert child.prefix.cached_tokens == child.cached_tokens
        total += sum(child.computed_tokens for child in grown)
    unique = 100 + 8 * 80
    assert total <= unique + 4 * 8 * BLOCK
    after = tiny.stats()
    assert after.tokens_computed - before.tokens_computed >= total
    assert after.tokens_hit > before.tokens_hit
    assert (after.running, after.waiting, after.pages_claimed) == (0, 0, 0)
    assert after.page_tokens == BLOCK


async def test_a_tree_stays_on_one_of_several_ranks(
    tiny: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's data-parallel ranks share no cache; here one is told what eight would be."""
    asked: list[int | None] = []
    generate = tiny._backend._llm.generate

    def noted(*args: Any, data_parallel_rank: int | None, **more: Any) -> Any:
        asked.append(data_parallel_rank)
        return generate(*args, **more)

    monkeypatch.setattr(tiny._backend._llm, "generate", noted)
    how = Sampling(max_tokens=9, max_step_tokens=3, ban_ids=tiny.info.eos_ids, deltas=False)
    roots = [await tiny.open(tuple(range(at, at + 20))) for at in range(30)]
    await children(tiny, roots[0], how)
    assert asked == [None]
    monkeypatch.setattr(tiny._backend, "_num_ranks", 8)
    ranks = set()
    for root in roots:
        asked.clear()
        first, _ = await children(tiny, root, how, (1, 2))
        await children(tiny, first.prefix, how)
        await tiny.next_logprobs([first.prefix], top_k=2)
        assert len(asked) == 4
        assert len(set(asked)) == 1
        ranks.update(asked)
    assert ranks <= set(range(8))
    assert len(ranks) > 4


async def test_parallelism_is_handed_to_vllm_as_it_was_set(tiny_model: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from engines.vllm_options import field_names, read_options

    wanted = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "data_parallel_size": 4,
        "data_parallel_address": "10.0.0.7",
        "data_parallel_rpc_port": 1234,
        "data_parallel_size_local": 2,
    }
    chosen = read_options(str(tiny_model), wanted, field_names(AsyncEngineArgs), is_cpu=False)
    arguments = AsyncEngineArgs(model=str(tiny_model), **chosen.engine)
    assert {name: getattr(arguments, name) for name in wanted} == wanted


async def test_tenants_do_not_see_each_others_cache(tiny: VllmEngine) -> None:
    how = Sampling(max_tokens=2, deltas=False)
    prompt = tuple(range(60, 140))
    found = []
    for tenant in ("a", "b", "a", ""):
        [done] = await children(tiny, await tiny.open(prompt, tenant=tenant), how)
        found.append(done.cached_tokens)
    assert found == [0, 0, 64, 0]
