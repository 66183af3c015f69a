"""A block-diffusion model behind SGLang as a denoiser whose steps are whole blocks.

SGLang denoises block by block from left to right, shows no half-masked state, and keeps finished
blocks in its prefix cache. So a state is the prompt and the blocks that are finished, a step is one
block more, and everything behind is mask. Blocks are counted from the row's first token: the first
and the last of a text may be shorter.

SGLang does not say how often a block went through the model. An evaluation is a block here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from engines.base import EngineInfo, TokenIds
from engines.diffusion.base import (
    Denoised,
    DenoiseJob,
    DenoiserInfo,
    Kernel,
    check_job,
    require_own_steps,
    started,
)
from engines.errors import EngineClosed, ModelLoadError, PromptError, WrongLength
from engines.sglang_discovery import SAMPLED, WorkerInfo
from engines.sglang_pool import Pool

KERNEL: Final = "blocks"
_SEED_MASK: Final = 2**64 - 1


@dataclass(frozen=True)
class Family:
    """What SGLang fixes in code for an architecture.

    Attributes:
        block_size: Tokens of a block.
        mask_id: Of the mask.
    """

    block_size: int
    mask_id: int


FAMILIES: Final = {
    "LLaDA2MoeModelLM": Family(32, 156895),
    "SDARForCausalLM": Family(4, 151669),
    "SDARMoeForCausalLM": Family(4, 151669),
}


def family_of(where: str, architecture: str, worker: WorkerInfo, block_size: int) -> Family:
    """What the worker's model is.

    Args:
        where: For messages.
        architecture: In the model's config.json.
        worker: What it says of itself.
        block_size: As the operator says; 0 where they do not.

    Raises:
        ModelLoadError: No such architecture is known, or the block is not the worker's.
    """
    if architecture not in FAMILIES:
        raise ModelLoadError(
            where,
            f"block diffusion of {architecture or 'an unnamed architecture'} is not known here; "
            f"known are {', '.join(FAMILIES)}",
        )
    known = FAMILIES[architecture]
    size = block_size or known.block_size
    if worker.page_size > 1 and worker.page_size % size:  # SGLang makes a page of whole blocks
        raise ModelLoadError(
            where,
            f"its pages of {worker.page_size} tokens are no blocks of {size}: say block_size as in "
            "the worker's --dllm-algorithm-config",
        )
    return Family(size, known.mask_id)


def denoiser_info(engine: EngineInfo, family: Family, worker: WorkerInfo) -> DenoiserInfo:
    """What the denoiser is; only one algorithm reads temperature and seed."""
    size = family.block_size
    return DenoiserInfo(
        model_id=engine.model_id,
        mask_id=family.mask_id,
        max_length=engine.context_tokens,
        kernels=(KERNEL,),
        stochastic=frozenset(),
        default_length=min(max(size, 128), engine.context_tokens - 1),
        block_size=size,
        reads_temperature=worker.algorithm == SAMPLED,
    )


def ends_of(prompt_tokens: int, length: int, block_size: int) -> tuple[int, ...]:
    """Where each step of a text ends in its row: at the block's end, the last one at the text's."""
    end = prompt_tokens + length
    first = (prompt_tokens // block_size + 1) * block_size
    return (*range(first, end, block_size), end)


def own_kernel(info: DenoiserInfo, prompt_tokens: int, length: int) -> Kernel:
    """The only one: as many steps as the text has blocks."""
    return Kernel(KERNEL, steps=len(ends_of(prompt_tokens, length, info.block_size)))


class BlockDenoiser:
    """See the module's docstring; `engines.diffusion.base.Denoiser`.

    Args:
        info: Of `denoiser_info`.
        engine: Of the engine around it.
        pool: The workers.
        count: Told of every request's cost: prompt, cached and drawn tokens.
    """

    def __init__(
        self,
        info: DenoiserInfo,
        engine: EngineInfo,
        pool: Pool,
        count: Callable[[int, int, int], None],
    ) -> None:
        self.info = info
        self._engine = engine
        self._pool = pool
        self._count = count

    def start(self, prompt: TokenIds, length: int) -> TokenIds:
        """See `Denoiser.start`."""
        size = self._engine.vocab_size
        wrong = next((token for token in prompt if not 0 <= token < size), None)
        if wrong is not None:  # it would end the whole worker
            raise PromptError(f"token id {wrong} is not in 0 … {size - 1}, the vocabulary")
        return started(self.info, prompt, length)

    async def denoise(self, jobs: Sequence[DenoiseJob]) -> list[Denoised]:
        """See `Denoiser.denoise`; each job is one request.

        Raises:
            DenoiseError: Also for steps that are no blocks, and for blocks that are masked in part.
        """
        spans = [self._span(job) for job in jobs]
        pairs = zip(jobs, spans, strict=True)
        tasks = [asyncio.create_task(self._one(job, *span)) for job, span in pairs]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _span(self, job: DenoiseJob) -> tuple[int, tuple[int, ...]]:
        """Where the job begins in its row, and where each of its steps ends."""
        check_job(self.info, job)
        prompt = sum(job.frozen_mask)
        length = len(job.tokens) - prompt
        require_own_steps(self.info, own_kernel(self.info, prompt, length), job.kernel)
        ends = ends_of(prompt, length, self.info.block_size)
        begin = ends[job.step - 1] if job.step else prompt
        known, rest = job.tokens[:begin], job.tokens[begin:]
        masks = rest.count(self.info.mask_id)
        is_prefix = all(job.frozen_mask[:prompt])
        if not is_prefix or self.info.mask_id in known or masks not in (0, len(rest)):
            raise WrongLength(
                f"a state of model {self.info.model_id!r} is prompt and whole blocks of "
                f"{self.info.block_size} tokens; this one has masks elsewhere than behind them"
            )
        return begin, ends[job.step : job.stop_step]

    async def _one(self, job: DenoiseJob, begin: int, ends: tuple[int, ...]) -> Denoised:
        row, prompt = job.tokens, sum(job.frozen_mask)
        known, drawn = row[:begin], TokenIds()
        eos = next((token for token in known[prompt:] if token in self._engine.eos_ids), None)
        if self.info.mask_id not in row[begin:]:
            drawn = row[begin : ends[-1]]
            nfe = 0
        else:
            if eos is None:
                drawn = await self._drawn(job, known, ends[-1] - begin)
                eos = drawn[-1] if drawn[-1] in self._engine.eos_ids else None
            nfe = sum(end < begin + len(drawn) for end in ends) + 1 if drawn else 0
            if eos is not None:  # nothing is read behind an end
                drawn += (eos,) * (ends[-1] - begin - len(drawn))
        tokens = known + drawn + row[ends[-1] :]
        return Denoised(tokens, job.stop_step, nfe, (0.0,) * len(tokens))

    async def _drawn(self, job: DenoiseJob, known: TokenIds, count: int) -> TokenIds:
        """So many tokens behind `known`, or fewer with an eos as their last."""
        body: dict[str, Any] = {
            "sampling_params": {
                "max_new_tokens": count,
                "temperature": job.temperature,
                "stop_token_ids": sorted(self._engine.eos_ids),
            },
            "rid": f"{job.seed & _SEED_MASK:016x}",
        }
        drawn: list[int] = []
        async with aclosing(self._pool.generate(known, job.tenant, body)) as all_news:
            async for news in all_news:
                drawn += news.ids
                if news.finish is not None:
                    break
        self._count(news.prompt_tokens, news.cached_tokens, len(drawn))
        eos_ids, due = self._engine.eos_ids, drawn[:count]
        end = next((at for at, token in enumerate(due) if token in eos_ids), None)
        if end is not None:
            return tuple(due[: end + 1])
        if len(drawn) > count:
            raise EngineClosed(f"SGLang sent {len(drawn)} tokens where {count} were due")
        matched = (news.finish or {}).get("matched")
        if drawn and isinstance(matched, int) and drawn[-1] == matched and eos_ids:
            # One that only the server's tokenizer knows ends texts too; here it is one of ours.
            return (*drawn[:-1], min(eos_ids))
        if len(drawn) < count:
            raise EngineClosed(f"SGLang sent {len(drawn)} tokens where {count} were due")
        return tuple(drawn)
