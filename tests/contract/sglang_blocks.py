"""Block diffusion on SGLang: what the wire does, and what the engine makes of it.

As `sglang_protocol`: every check runs on the fake in each test run, and on a real server whose
model is random in `make test-sglang`. Both run the algorithm of `engines.sglang_block_sampler`, or
what stands for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import httpx
import pytest

from engines.base import Capability, Continuation, Sampling
from engines.diffusion import conformance
from engines.diffusion.base import DenoiseJob, frozen_prompt
from engines.errors import DenoiseError, DeterministicKernel, UnsupportedByEngine, WrongLength
from engines.sglang_block_engine import SGLangBlockEngine
from engines.sglang_blocks import BlockDenoiser, own_kernel
from engines.sglang_http import open_engine
from search.run import Run
from tests.search_harness import request
from tests.toy_engine import ToyJudge

PROMPT = (72, 101, 121, 40, 90)


@dataclass(frozen=True)
class Blocks:
    """A server.

    Attributes:
        url: Its address.
        block: Tokens of a block.
    """

    url: str
    block: int

    @property
    def length(self) -> int:
        """Of a text of three blocks, the first and the last of them shorter."""
        return 2 * self.block

    async def ask(self, prompt: tuple[int, ...] = PROMPT, rid: str = "", **params: Any) -> Any:
        body = {"input_ids": list(prompt), "rid": rid, "sampling_params": params}
        async with httpx.AsyncClient(base_url=self.url, verify=False, timeout=120) as client:
            reply = await client.post("/generate", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[SGLangBlockEngine]:
        engine = open_engine("blocks", self.url, {"idle_timeout_s": 300.0})
        assert isinstance(engine, SGLangBlockEngine)
        try:
            yield engine
        finally:
            await engine.aclose()


Check = Callable[[Blocks], Awaitable[None]]


async def the_head_of_a_request_id_is_its_seed(blocks: Blocks) -> None:
    """Whatever follows the sixteen digits; at temperature 0 not even they matter."""
    texts = {
        (seed, heat): (
            await blocks.ask(
                rid=f"{seed:016x}{tail}", temperature=heat, max_new_tokens=blocks.length
            )
        )["output_ids"]
        for tail, seed, heat in (("a", 1, 1), ("b", 2, 1), ("c", 1, 0), ("d", 2, 0))
    }
    again = await blocks.ask(rid=f"{1:016x}else", temperature=1, max_new_tokens=blocks.length)
    assert again["output_ids"] == texts[1, 1] != texts[2, 1]
    assert texts[1, 0] == texts[2, 0]


async def finished_blocks_are_cached(blocks: Blocks) -> None:
    """In whole blocks, those of the answer too."""
    params = {"temperature": 1, "max_new_tokens": blocks.length, "ignore_eos": True}
    first = await blocks.ask(rid=f"{3:016x}x", **params)
    longer = (*PROMPT, *first["output_ids"])
    second = await blocks.ask(longer, rid=f"{4:016x}x", **params)
    found = second["meta_info"]["cached_tokens"]
    assert found >= blocks.block
    assert found % blocks.block == 0


async def a_stop_token_ends_a_block_early(blocks: Blocks) -> None:
    """It is the last token that comes."""
    params = {"temperature": 0, "max_new_tokens": blocks.length}
    whole = (await blocks.ask(rid=f"{0:016x}s", **params))["output_ids"]
    stop = whole[blocks.block // 2]
    cut = await blocks.ask(rid=f"{0:016x}t", **params, stop_token_ids=[stop])
    assert cut["output_ids"] == whole[: whole.index(stop) + 1]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


async def the_engine_says_what_it_is(blocks: Blocks) -> None:
    """It denoises in whole blocks and keeps seeds, and has nothing that goes token by token."""
    async with blocks.engine() as engine:
        info = engine.denoiser.info
        assert engine.info.capabilities == {Capability.DENOISE, Capability.SEED}
        assert info.block_size == blocks.block
        assert info.reads_temperature
        prefix = await engine.open(PROMPT)
        for asked in (engine.score(prefix, (5,)), engine.next_logprobs([prefix], top_k=1)):
            with pytest.raises(UnsupportedByEngine):
                await asked
        for how in (Sampling(top_p=0.5), Sampling(logprobs=2), Sampling(boundaries=("\n",))):
            with pytest.raises(UnsupportedByEngine):
                engine.check_sampling(how)
        prefix.release()


async def the_denoiser_keeps_the_laws(blocks: Blocks) -> None:
    """Those of `engines.diffusion.conformance`, at its only kernel."""
    async with blocks.engine() as engine:
        info = engine.denoiser.info
        kernel = own_kernel(info, len(PROMPT), blocks.length)
        subject = conformance.DenoiserSubject(
            lambda: engine.denoiser, PROMPT, blocks.length, kernels=(kernel,)
        )
        for check in conformance.CHECKS:
            await conformance.run_check(check, subject)


async def nothing_is_read_behind_an_end(blocks: Blocks) -> None:
    """An end fills the rest of its text, and the steps behind it cost nothing."""
    async with blocks.engine() as engine:
        job = whole_job(engine, blocks.length)
        [whole] = await engine.denoiser.denoise([job])
        stop = whole.tokens[len(PROMPT)]
        ending = BlockDenoiser(
            engine.denoiser.info,
            replace(engine.info, eos_ids=frozenset({stop})),
            engine._pool,
            lambda *_: None,
        )
        [first] = await ending.denoise([replace(job, stop_step=1)])
        [rest] = await ending.denoise([replace(job, tokens=first.tokens, step=1)])
        assert rest.tokens[len(PROMPT) :] == (stop,) * blocks.length
        assert (first.nfe, rest.nfe) == (1, 0)
        [at_once] = await ending.denoise([job])
        assert (at_once.tokens, at_once.nfe) == (rest.tokens, 1)


async def partial_blocks_are_refused(blocks: Blocks) -> None:
    """No half-masked block, and no other steps than blocks; nothing is sent."""
    async with blocks.engine() as engine:
        job, mask = whole_job(engine, blocks.length), engine.denoiser.info.mask_id
        half = (*PROMPT, 40, *(mask,) * (blocks.length - 1))
        with pytest.raises(WrongLength, match="whole blocks"):
            await engine.denoiser.denoise([replace(job, tokens=half)])
        finer = replace(job, kernel=replace(job.kernel, steps=blocks.length))
        with pytest.raises(DenoiseError, match="leave it out"):
            await engine.denoiser.denoise([finer])


async def trees_branch_at_blocks(blocks: Blocks) -> None:
    """Every state is whole blocks, states are shared, and the best text is the answer."""
    async with blocks.engine() as engine:
        best = await searched(engine, "dts_star", blocks, samples=4, width=2)
        assert len({text for text, _ in best.texts}) > 1
        assert best.score == max(score for _, score in best.texts)
        assert best.branched > 0, "every rollout began at the prompt"
        again = await searched(engine, "dts_star", blocks, samples=4, width=2)
        assert again == best, "the same seed, another tree"
        assert (await searched(engine, "dts", blocks, samples=2, width=2)).texts
        plain = await searched(engine, "best_of_n", blocks, width=2)
        assert len(plain.texts) == 2


async def what_no_tree_can_be_is_refused(blocks: Blocks) -> None:
    """Temperature 0; other steps; guesses in one shot."""
    async with blocks.engine() as engine:
        with pytest.raises(DeterministicKernel, match="above 0"):
            await searched(engine, "dts_star", blocks, temperature=0.0)
        for wrong in ({"steps": blocks.length}, {"block_length": 2}, {"kernel": "mdlm"}):
            with pytest.raises(DenoiseError, match="whole blocks"):
                await searched(engine, "dts", blocks, **wrong)
        with pytest.raises(UnsupportedByEngine, match="dts_star"):
            await searched(engine, "fk_steering", blocks)


async def samples_are_whole_texts(blocks: Blocks) -> None:
    """One delta each, of the asked length, the same for the same seed."""
    async with blocks.engine() as engine:
        prefix = await engine.open(PROMPT)
        how = Sampling(max_tokens=blocks.length, temperature=1.0)
        ends = [
            item
            for seeds in ((7, 8), (7, 8))
            async for item in engine.sample(prefix, how, n=2, seeds=seeds)
            if isinstance(item, Continuation)
        ]
        texts = [one.token_ids for one in ends]
        assert sorted(texts[:2]) == sorted(texts[2:])
        assert len(set(texts)) == 2
        for one in ends:
            one.prefix.release()
        prefix.release()


@dataclass(frozen=True)
class Searched:
    texts: tuple[tuple[str, float], ...]
    score: float
    branched: int


async def searched(
    engine: SGLangBlockEngine,
    strategy: str,
    blocks: Blocks,
    temperature: float = 1.0,
    **params: Any,
) -> Searched:
    """One run under a judge that likes texts by their letters."""
    how = Sampling(max_tokens=blocks.length, temperature=temperature)
    judge = ToyJudge(lambda text: (sum(map(ord, text)) % 101) / 100)
    run = Run(request(strategy, params, sampling=how), engine=engine, judge=judge)
    result = await run.result()
    states = [branch.state for branch in run.tree.branches if branch.state is not None]
    mask, size = engine.denoiser.info.mask_id, engine.denoiser.info.block_size
    for state in states:
        known = len(state.row) - state.row.count(mask)
        assert mask not in state.row[:known]
        assert known % size == 0 or known == len(state.row)
    parents = [branch.parent for branch in run.tree.branches if branch.parent is not None]
    inner = [one.id for one in parents if one.parent is not None]
    return Searched(
        tuple((one.content, one.score or 0.0) for one in result.candidates),
        result.score or 0.0,
        len(inner) - len(set(inner)),
    )


def whole_job(engine: SGLangBlockEngine, length: int) -> DenoiseJob:
    kernel = own_kernel(engine.denoiser.info, len(PROMPT), length)
    row = engine.denoiser.start(PROMPT, length)
    frozen = frozen_prompt(len(PROMPT), length)
    return DenoiseJob(row, frozen, 0, kernel.steps, 5, 1.0, kernel)


async def streams_move_in_blocks(blocks: Blocks) -> None:
    """From the block that the prompt ends in to the last one, which is cut; events may repeat, and
    the first ones may come before any block has ended.
    """
    async with blocks.engine() as engine:
        sizes = []
        params = {"max_new_tokens": blocks.length, "ignore_eos": True}
        body: dict[str, Any] = {"sampling_params": params, "rid": f"{9:016x}"}
        async for news in engine._pool.generate(PROMPT, "", body):
            sizes.append(len(news.ids))
            if news.finish is not None:
                break
    ends, at = [], len(PROMPT)
    for size in sizes:
        at += size
        ends.append(at)
    assert ends[-1] == len(PROMPT) + blocks.length
    inner = [end for end in ends if end not in (len(PROMPT), ends[-1])]
    assert inner
    assert all(end % blocks.block == 0 for end in inner), ends
    assert all(one <= other for one, other in pairwise(ends))


CHECKS: tuple[Check, ...] = (
    the_head_of_a_request_id_is_its_seed,
    finished_blocks_are_cached,
    a_stop_token_ends_a_block_early,
    streams_move_in_blocks,
    the_engine_says_what_it_is,
    the_denoiser_keeps_the_laws,
    nothing_is_read_behind_an_end,
    partial_blocks_are_refused,
    samples_are_whole_texts,
    trees_branch_at_blocks,
    what_no_tree_can_be_is_refused,
)
