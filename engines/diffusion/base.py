"""The seam between a search and a masked-diffusion language model.

A state is a row of token ids in which some positions hold the mask id, and the number of steps
done. A denoiser moves states forward: at each step a *kernel* picks masked positions, and the model
says which tokens stand there. What was revealed never changes. The chain is Markov in (tokens,
step), so any state may be stored, shared and continued with another seed.

Steps count upwards: 0 is prompt and masks, `Kernel.steps` is the finished text. Every draw is keyed
by (job seed, step, position): neither the batch around a job nor cutting a run into several jobs
changes what comes.

Nothing here imports torch. It does not say which text is good, and keeps no tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from engines.base import Engine, Sampling, TokenIds
from engines.errors import (
    DenoiseError,
    DeterministicKernel,
    MaskInPrompt,
    UnknownKernel,
    WrongLength,
)

KERNELS: Final = (
    "mdlm",
    "random",
    "low_confidence",
    "origin",
    "maskgit_plus",
    "topk_margin",
    "entropy",
)
"""Every kernel there is: MDLM's, LLaDA's two, Dream's four. Any of them is valid on any model."""

STOCHASTIC: Final = frozenset({"mdlm", "random", "origin"})
"""Kernels that choose positions at random, so that even temperature 0 gives different texts."""


@dataclass(frozen=True)
class Kernel:
    """One step of the reverse chain, and how many of them make a text.

    Attributes:
        name: One of `KERNELS`.
        steps: Steps of a full run, all blocks together.
        block_length: Positions are revealed block by block of this many, left to right; None takes
            all of them as one block. Each block gets an equal share of the steps.
        position_temperature: Dream's ``alg_temp``: above 0 a confidence kernel draws its positions
            with probability proportional to ``exp(confidence / temperature)``.
        top_p: Draw tokens from the smallest set that holds this probability, in (0, 1].
        top_k: Draw among this many tokens; 0 takes all.
        noise_removal: What chance left masked at the end of an ``mdlm`` block is filled with the
            likeliest tokens, at one evaluation more.
        ban_ids: Tokens never drawn, beside the mask.
    """

    name: str
    steps: int
    block_length: int | None = None
    position_temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    noise_removal: bool = True
    ban_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class DenoiserInfo:
    """What callers may know of a denoiser without asking it.

    Attributes:
        model_id: The id on the wire.
        mask_id: The token that stands for "not revealed yet"; never drawn.
        max_length: The most tokens of a row, prompt and text together.
        kernels: Names of the kernels it runs; the first is the one its authors use.
        stochastic: Those of them that differ from seed to seed even at temperature 0.
        parameters: Weights in the model.
        default_length: Tokens of a text where nobody asks for another length.
        temperature: What suits its trees where nobody asks for another.
        block_size: Above 0 a step is a whole block of so many tokens, counted from the row's first,
            and there are no other steps: see `require_own_steps`.
        reads_temperature: Whether a temperature above 0 makes draws random.
    """

    model_id: str
    mask_id: int
    max_length: int
    kernels: tuple[str, ...] = KERNELS
    stochastic: frozenset[str] = STOCHASTIC
    parameters: int = 0
    default_length: int = 32
    temperature: float = 1.0
    block_size: int = 0
    reads_temperature: bool = True


@dataclass(frozen=True)
class DenoiseJob:
    """Steps `step` to `stop_step` of one row.

    Attributes:
        tokens: The row: revealed ids and masks.
        frozen_mask: True where the row must never change, such as the prompt; as long as `tokens`.
        step: Steps done before.
        stop_step: Steps done after; above `step`, at most `kernel.steps`.
        seed: Of all draws of this job.
        temperature: Of the tokens; 0 takes the likeliest.
        kernel: How positions are picked.
        tenant: Whose it is, where something is cached.
    """

    tokens: TokenIds
    frozen_mask: tuple[bool, ...]
    step: int
    stop_step: int
    seed: int
    temperature: float
    kernel: Kernel
    tenant: str = ""


@dataclass(frozen=True)
class Denoised:
    """A job done.

    Attributes:
        tokens: The row now.
        step: Steps done: the job's `stop_step`.
        nfe: Times this row went through the model. A step that reveals nothing costs nothing.
        logps: For each position the log-probability (nats, temperature 1, nothing truncated, the
            mask forbidden) of the token revealed there by this job, when it was revealed; 0.0 for
            all others.
    """

    tokens: TokenIds
    step: int
    nfe: int
    logps: tuple[float, ...]

    @property
    def logp(self) -> float:
        """Log-probability of what this job revealed, given where and when it was revealed."""
        return sum(self.logps)


class Denoiser(Protocol):
    """Moves states forward. Its laws are `engines.diffusion.conformance`."""

    @property
    def info(self) -> DenoiserInfo:
        """What the denoiser is."""

    def start(self, prompt: TokenIds, length: int) -> TokenIds:
        """The state at step 0: `prompt`, then `length` masks.

        Raises:
            WrongLength: Less than one token, or more than the model reads beside the prompt.
            MaskInPrompt: The prompt holds the mask id.
            PromptError: An id of the prompt that the model does not have.
        """

    async def denoise(self, jobs: Sequence[DenoiseJob]) -> list[Denoised]:
        """Run all jobs, in one batch with those of other callers; results in the jobs' order.

        Cancelling the call drops its rows from the batch.

        Raises:
            DenoiseError: A job that cannot be; `check_job` says what is checked. Nothing was run.
            EngineClosed: The denoiser was closed.
        """


@dataclass(frozen=True)
class Course:
    """A full run as `Engine.sample` does it: what a search varies, and compares itself with.

    Attributes:
        length: Tokens of the text.
        kernel: By the engine's options.
        temperature: Of the tokens.
    """

    length: int
    kernel: Kernel
    temperature: float


@runtime_checkable
class DenoisingEngine(Engine, Protocol):
    """An engine with Capability.DENOISE."""

    @property
    def denoiser(self) -> Denoiser:
        """Its denoiser."""

    def course(self, prompt_tokens: int, how: Sampling) -> Course:
        """What one child of `sample` is: denoising it by jobs gives the same text for its seed.

        Raises:
            WrongLength: `how.max_tokens` has no room beside the prompt, or does not go into blocks.
            UnsupportedByEngine: An option of `how` that the engine cannot honour.
        """


def started(info: DenoiserInfo, prompt: TokenIds, length: int) -> TokenIds:
    """`Denoiser.start` for any model.

    Raises:
        WrongLength: As there.
        MaskInPrompt: As there.
    """
    room = info.max_length - len(prompt)
    if not 1 <= length <= room:
        raise WrongLength(
            f"a text of {length} tokens cannot be: beside a prompt of {len(prompt)}, model "
            f"{info.model_id!r} has room for 1 to {room}"
            if room > 0
            else f"the prompt has {len(prompt)} tokens and model {info.model_id!r} reads "
            f"{info.max_length}, prompt and text together: shorten the messages"
        )
    if info.mask_id in prompt:
        raise MaskInPrompt(
            f"the prompt holds the mask token (id {info.mask_id}) at position "
            f"{prompt.index(info.mask_id)}: leave it out, masks stand for the text to come"
        )
    return prompt + (info.mask_id,) * length


def frozen_prompt(prompt_tokens: int, length: int) -> tuple[bool, ...]:
    """The `frozen_mask` of a prompt and the text behind it."""
    return (True,) * prompt_tokens + (False,) * length


def answer_ids(tokens: TokenIds, prompt_tokens: int, eos_ids: frozenset[int]) -> TokenIds:
    """The text's tokens up to its first eos, which is left out."""
    answer = tokens[prompt_tokens:]
    end = next((at for at, token in enumerate(answer) if token in eos_ids), len(answer))
    return answer[:end]


def is_stochastic(info: DenoiserInfo, kernel: Kernel, temperature: float) -> bool:
    """Whether two seeds may give two texts."""
    is_drawn = temperature > 0 and info.reads_temperature
    return is_drawn or kernel.name in info.stochastic or kernel.position_temperature > 0


def require_stochastic(info: DenoiserInfo, kernel: Kernel, temperature: float) -> None:
    """Refuse a chain without chance, under which all children of a node are the same.

    Raises:
        DeterministicKernel: Temperature 0, and nothing else is random.
    """
    if is_stochastic(info, kernel, temperature):
        return
    if not info.reads_temperature:
        raise DeterministicKernel(
            f"the server of model {info.model_id!r} reveals the likeliest tokens whatever the "
            "temperature is, so every branch of a tree would be equal and searching it useless: "
            "start it with an algorithm that draws"
        )
    if info.block_size:
        raise DeterministicKernel(
            f"at temperature 0 model {info.model_id!r} always gives the same text, so every branch "
            "of a tree would be equal and searching it useless: use a temperature above 0"
        )
    raise DeterministicKernel(
        f"kernel {kernel.name!r} at temperature 0 always gives the same text, so every branch "
        "of a tree would be equal and searching it useless: use a temperature above 0, "
        f"position_temperature above 0, or one of {', '.join(sorted(info.stochastic))}"
    )


def require_own_steps(info: DenoiserInfo, own: Kernel, kernel: Kernel) -> None:
    """Refuse other steps than whole blocks where a server knows no others.

    Args:
        info: The denoiser's.
        own: How its own samples go.
        kernel: What is asked.

    Raises:
        DenoiseError: Naming the field that differs.
    """
    if not info.block_size:
        return
    for name in ("name", "steps", "block_length", "position_temperature"):
        if getattr(kernel, name) != getattr(own, name):
            raise DenoiseError(
                "kernel" if name == "name" else name,
                f"{name} {getattr(kernel, name)!r} cannot be: the server of model "
                f"{info.model_id!r} denoises whole blocks of {info.block_size} tokens and shows no "
                "state between, so its steps are blocks; leave it out",
            )


def check_kernel(info: DenoiserInfo, kernel: Kernel, length: int) -> None:
    """Refuse a kernel that cannot reveal `length` positions.

    Raises:
        UnknownKernel: The model has no kernel of this name.
        WrongLength: Length, blocks and steps do not go into one another.
        DenoiseError: An option outside its range.
    """
    if kernel.name not in info.kernels:
        raise UnknownKernel(
            f"model {info.model_id!r} has no kernel {kernel.name!r}; it has "
            f"{', '.join(info.kernels)}"
        )
    if kernel.steps < 1:
        raise DenoiseError("steps", f"steps must be at least 1, not {kernel.steps}")
    block = length if kernel.block_length is None else kernel.block_length
    if block < 1 or length % block:
        raise WrongLength(
            f"a text of {length} tokens does not consist of blocks of {block}: choose a length "
            "that is a multiple of block_length"
        )
    if kernel.steps % (length // block):
        raise DenoiseError(
            "steps",
            f"{kernel.steps} steps cannot be shared equally by {length // block} blocks: choose a "
            "multiple of the number of blocks",
        )
    if not 0 < kernel.top_p <= 1:
        raise DenoiseError("top_p", f"top_p must be above 0 and at most 1, not {kernel.top_p}")
    if kernel.top_k < 0:
        raise DenoiseError("top_k", f"top_k must be at least 0, not {kernel.top_k}")
    _check_temperature("position_temperature", kernel.position_temperature)


def check_job(info: DenoiserInfo, job: DenoiseJob) -> None:
    """Refuse a job that cannot be run.

    Raises:
        WrongLength: Longer than the model reads, or masks that do not fit the tokens.
        MaskInPrompt: A frozen position holds the mask.
        DenoiseError: Steps out of order, a temperature below 0, or as `check_kernel`.
    """
    tokens, frozen = job.tokens, job.frozen_mask
    if not 1 <= len(tokens) <= info.max_length:
        raise WrongLength(
            f"a row of {len(tokens)} tokens cannot be: model {info.model_id!r} reads 1 to "
            f"{info.max_length}"
        )
    if len(frozen) != len(tokens):
        raise WrongLength(f"frozen_mask says {len(frozen)} positions, tokens are {len(tokens)}")
    for position, (token, is_frozen) in enumerate(zip(tokens, frozen, strict=True)):
        if is_frozen and token == info.mask_id:
            raise MaskInPrompt(
                f"position {position} is frozen and holds the mask token (id {info.mask_id}), so "
                "nothing could ever stand there"
            )
    _check_temperature("temperature", job.temperature)
    free = len(tokens) - sum(frozen)
    if free == 0:
        raise WrongLength("every position is frozen, so there is nothing to reveal")
    check_kernel(info, job.kernel, free)
    if not 0 <= job.step < job.stop_step <= job.kernel.steps:
        raise DenoiseError(
            "steps",
            f"a job from step {job.step} to {job.stop_step} of {job.kernel.steps} cannot be: "
            "0 <= step < stop_step <= steps",
        )


def max_nfe(job: DenoiseJob, mask_id: int) -> int:
    """The most that a job may cost: every evaluation reveals something."""
    kernel, free = job.kernel, len(job.tokens) - sum(job.frozen_mask)
    steps = job.stop_step - job.step
    if kernel.name == "mdlm" and kernel.noise_removal:
        of_block = kernel.steps * (kernel.block_length or free) // free
        steps += job.stop_step // of_block - job.step // of_block
    return min(steps, job.tokens.count(mask_id))


def _check_temperature(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise DenoiseError(name, f"{name} must be at least 0 and finite, not {value}")
