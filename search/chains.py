"""The reverse chain of a request on a denoising engine, and what following it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.base import Capability, Engine, Sampling, TokenIds
from engines.diffusion.base import (
    DenoiseJob,
    DenoiserInfo,
    DenoisingEngine,
    Kernel,
    check_kernel,
    frozen_prompt,
    max_nfe,
    require_own_steps,
    require_stochastic,
)
from engines.errors import UnsupportedByEngine
from search.branch import Branch


@dataclass(frozen=True)
class Chain:
    """The reverse chain of one request: what all of its jobs have in common.

    Attributes:
        info: The denoiser's.
        kernel: How positions are picked, and in how many steps.
        temperature: Of the tokens.
        start: Prompt and masks.
        prompt_tokens: Leading tokens that are the prompt.
    """

    info: DenoiserInfo
    kernel: Kernel
    temperature: float
    start: TokenIds
    prompt_tokens: int

    @property
    def steps(self) -> int:
        """Steps of a full run."""
        return self.kernel.steps

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self.start) - self.prompt_tokens

    def job(self, branch: Branch, stop_step: int) -> DenoiseJob:
        """From where the branch stands up to a step; `Search.denoise` puts the seed in."""
        state = branch.state
        row, step = (self.start, 0) if state is None else (state.row, state.step)
        return self._job(row, step, stop_step, self.kernel)

    def one_shot(self, branch: Branch) -> DenoiseJob:
        """Everything that is still masked at once: a guess at what the branch may become."""
        row = self.start if branch.state is None else branch.state.row
        return self._job(row, 0, 1, replace(self.kernel, steps=1, block_length=None))

    @property
    def guess_nfe(self) -> int:
        """The most evaluations that `one_shot` may take."""
        job = self._job(self.start, 0, 1, replace(self.kernel, steps=1, block_length=None))
        return max_nfe(job, self.info.mask_id)

    def cost(self, row: TokenIds, step: int) -> dict[str, int]:
        """The most that going on from there to the end may cost, in units of `Limits`."""
        return bounds_of(self._job(row, step, self.steps, self.kernel), self.info.mask_id)

    def _job(self, row: TokenIds, step: int, stop_step: int, kernel: Kernel) -> DenoiseJob:
        frozen = frozen_prompt(self.prompt_tokens, self.length)
        return DenoiseJob(row, frozen, step, stop_step, 0, self.temperature, kernel)


@dataclass(frozen=True)
class Restored:
    """A stored node.

    Attributes:
        parent: Its parent's place in the list of all that are restored; None below the root.
        text: The row without the prompt.
        step: Steps done.
        value: What its reward was; None for one that goes on.
    """

    parent: int | None
    text: TokenIds
    step: int
    value: float | None = None


def chain_of(engine: Engine, prompt: TokenIds, how: Sampling, kernel: Mapping[str, Any]) -> Chain:
    """The chain that the engine's own samples follow, with some of its kernel's options replaced.

    Args:
        engine: Must denoise.
        prompt: As rendered.
        how: The request's sampling.
        kernel: Fields of `Kernel`; those that are None stay as they are.

    Raises:
        UnsupportedByEngine: The engine does not denoise, or cannot honour an option of `how`.
        DenoiseError: The chain cannot be, or nothing in it is random.
    """
    if not isinstance(engine, DenoisingEngine):
        raise UnsupportedByEngine(Capability.DENOISE, engine.info.model_id, "choose another model")
    info = engine.denoiser.info
    course = engine.course(len(prompt), how)
    given = {name: value for name, value in kernel.items() if value is not None}
    chosen = replace(course.kernel, **given)
    require_own_steps(info, course.kernel, chosen)
    check_kernel(info, chosen, course.length)
    require_stochastic(info, chosen, course.temperature)
    start = engine.denoiser.start(prompt, course.length)
    return Chain(info, chosen, course.temperature, start, len(prompt))


def sample_nfe(engine: Engine, prompt_tokens: int, how: Sampling) -> int:
    """The most evaluations that one child of `Engine.sample` takes; 0 where nothing denoises."""
    if not isinstance(engine, DenoisingEngine):
        return 0
    course = engine.course(prompt_tokens, how)
    mask_id = engine.denoiser.info.mask_id
    frozen = frozen_prompt(0, course.length)
    row = (mask_id,) * course.length
    job = DenoiseJob(row, frozen, 0, course.kernel.steps, 0, course.temperature, course.kernel)
    return max_nfe(job, mask_id)


def bounds_of(job: DenoiseJob, mask_id: int) -> dict[str, int]:
    """The most that a job may cost, in units of `Limits`."""
    return {
        "nfe": max_nfe(job, mask_id),
        "generated_tokens": job.tokens.count(mask_id),
        "candidates": 1,
    }
