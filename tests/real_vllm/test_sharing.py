"""Branches share KV blocks, tenants do not."""

from __future__ import annotations

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


async def test_tenants_do_not_see_each_others_cache(tiny: VllmEngine) -> None:
    how = Sampling(max_tokens=2, deltas=False)
    prompt = tuple(range(60, 140))
    found = []
    for tenant in ("a", "b", "a", ""):
        [done] = await children(tiny, await tiny.open(prompt, tenant=tenant), how)
        found.append(done.cached_tokens)
    assert found == [0, 0, 64, 0]
