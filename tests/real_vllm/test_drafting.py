"""With speculative decoding on: the same greedy answers, schedules in pieces, the rest refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.base import Sampling
from engines.errors import UnsupportedByEngine
from engines.vllm_async import open_engine
from engines.vllm_engine import VllmEngine
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED
from tests.real_vllm.test_sampling import Frozen, children

pytestmark = SHARED

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}
PROMPT = (*range(5, 45), *range(5, 20))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def drafting(tiny_model: Path) -> AsyncIterator[VllmEngine]:
    engine = open_engine("tiny", str(tiny_model), {**SMALL, "speculative_config": NGRAM})
    yield engine
    await engine.aclose()


async def test_greedy_answers_are_the_same(drafting: VllmEngine, tiny: VllmEngine) -> None:
    how = Sampling(temperature=0.0, max_tokens=60, stop_token_ids=frozenset({17}), min_tokens=9)
    [with_drafts] = await children(drafting, await drafting.open(PROMPT), how)
    [without] = await children(tiny, await tiny.open(PROMPT), how)
    assert with_drafts.token_ids == without.token_ids
    assert with_drafts.finish == without.finish
    assert with_drafts.logps == pytest.approx(without.logps, abs=1e-4)


async def test_a_schedule_is_served_in_pieces(drafting: VllmEngine) -> None:
    """Cold from the fourth to the eighth token: there every answer takes the likeliest."""
    schedule = Frozen()
    root = await drafting.open(PROMPT)
    how = Sampling(max_tokens=12, schedule=schedule, stop_token_ids=frozenset())
    greedy = 0
    for child in await children(drafting, root, how, range(8)):
        drawn = child.token_ids[: schedule.end]
        at = range(schedule.start, len(drawn))
        stems = await drafting.extend([(root, drawn[:end]) for end in at])
        rows = await drafting.next_logprobs(stems, top_k=1)
        assert [row.ids[0] for row in rows] == list(drawn[schedule.start :])
        greedy += len(rows)
    assert greedy > 0


async def test_what_needs_a_processor_is_refused(drafting: VllmEngine) -> None:
    root = await drafting.open(PROMPT)
    for how in (Sampling(min_p=0.2), Sampling(logit_bias={3: 1.0}), Sampling(temperature=5.0)):
        with pytest.raises(UnsupportedByEngine, match="speculative decoding"):
            await children(drafting, root, how)


async def test_what_vllm_itself_refuses_is_refused_before_a_stream_begins(
    drafting: VllmEngine,
) -> None:
    root = await drafting.open(PROMPT)
    with pytest.raises(UnsupportedByEngine) as refused:
        drafting.sample(root, Sampling(logprobs=drafting.info.vocab_size + 1))
    assert refused.value.capability == "logprobs"


async def test_drafted_tokens_are_drawn_with_the_requests_own_options(
    drafting: VllmEngine,
) -> None:
    """Among one token the temperature picks the greedy one, drafted or not."""
    root = await drafting.open(PROMPT)
    how = Sampling(temperature=0.0, max_tokens=60)
    [greedy] = await children(drafting, root, how)
    [only] = await children(drafting, root, Sampling(temperature=1.0, top_k=1, max_tokens=60))
    assert only.drafted > 0
    assert only.token_ids == greedy.token_ids


async def test_rows_that_vllm_fills_up_draw_like_others(drafting: VllmEngine) -> None:
    """Of 33 tokens all but one are cached the second time: vLLM then invents drafts of -1."""
    root = await drafting.open(PROMPT[:33])
    [greedy] = await children(drafting, root, Sampling(temperature=0.0, max_tokens=12))
    how = Sampling(temperature=1.0, top_k=1, max_tokens=12)
    for child in await children(drafting, root, how, range(16)):
        assert child.cached_tokens == 32
        assert child.token_ids == greedy.token_ids
