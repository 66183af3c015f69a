"""A masked-diffusion engine small enough to enumerate.

The model is a table from what is revealed so far to the probabilities of each letter at a position,
so every text and its exact probability under the chain can be listed (`texts_of`). Draws are keyed
by seed, step and position. Every evaluation of a row is counted.
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from engines.base import Capability, Continuation, Delta, Finish, Prefix, Sampling, TokenIds
from engines.diffusion.base import (
    Course,
    Denoised,
    DenoiseJob,
    DenoiserInfo,
    Kernel,
    answer_ids,
    check_job,
    check_kernel,
    frozen_prompt,
    started,
)
from engines.echo import EchoEngine, EchoOptions
from engines.echo_child import own_prefix
from engines.echo_model import EOS, VOCAB_SIZE

MASK = VOCAB_SIZE
END = "<end>"
Letters = Callable[[tuple[str | None, ...], int], Mapping[str, float]]
"""From the letters so far, None where masked, and a position, to the letter's probabilities."""


def uniform(letters: str = "ab") -> Letters:
    """Every letter equally likely everywhere."""
    return lambda text, position: dict.fromkeys(letters, 1 / len(letters))


def sticky(letters: str, stay: float) -> Letters:
    """A letter is like the nearest revealed one before it with this probability."""

    def table(text: tuple[str | None, ...], position: int) -> Mapping[str, float]:
        before = next((one for one in reversed(text[:position]) if one is not None), None)
        if before is None:
            return dict.fromkeys(letters, 1 / len(letters))
        rest = (1 - stay) / (len(letters) - 1)
        return {one: stay if one == before else rest for one in letters}

    return table


def texts_of(table: Letters, length: int, text: tuple[str, ...] = ()) -> dict[str, float]:
    """Every text and its exact probability when letters are revealed from the left."""
    if len(text) == length:
        return {"".join(text): 1.0}
    row = (*text, *(None,) * (length - len(text)))
    found: dict[str, float] = {}
    for letter, share in table(row, len(text)).items():
        for whole, mass in texts_of(table, length, (*text, letter)).items():
            found[whole] = found.get(whole, 0.0) + share * mass
    return found


class ToyDenoiser:
    """Reveals letters drawn from a table: from the left, or at random positions.

    Attributes:
        forwards: Rows evaluated so far.
        batches: Sizes of the calls.
        jobs: Every job.
        called: Set by the first call.
        gate: While set to an Event that is clear, calls wait.
    """

    def __init__(self, table: Letters, length: int) -> None:
        self.info = DenoiserInfo(
            model_id="toy",
            mask_id=MASK,
            max_length=400,
            kernels=("left", "any"),
            stochastic=frozenset({"any"}),
            default_length=length,
        )
        self.table = table
        self.forwards = 0
        self.batches: list[int] = []
        self.jobs: list[DenoiseJob] = []
        self.called = asyncio.Event()
        self.gate: asyncio.Event | None = None

    def start(self, prompt: TokenIds, length: int) -> TokenIds:
        return started(self.info, prompt, length)

    async def denoise(self, jobs: Sequence[DenoiseJob]) -> list[Denoised]:
        for job in jobs:
            check_job(self.info, job)
        self.batches.append(len(jobs))
        self.called.set()
        self.jobs += jobs
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        return [self._run(job) for job in jobs]

    def _run(self, job: DenoiseJob) -> Denoised:
        row, logps, nfe = list(job.tokens), [0.0] * len(job.tokens), 0
        for step in range(job.step, job.stop_step):
            chosen = self._positions(row, step, job)
            nfe += bool(chosen)
            start = sum(job.frozen_mask)
            before = tuple(None if one == MASK else letter_of(one) for one in row[start:])
            for at in chosen:
                letters = self.table(before, at - start)
                letter = _draw(letters, job, step, at)
                row[at] = EOS if letter == END else ord(letter)
                logps[at] = math.log(letters[letter])
        self.forwards += nfe
        return Denoised(tuple(row), job.stop_step, nfe, tuple(logps))

    def _positions(self, row: list[int], step: int, job: DenoiseJob) -> list[int]:
        """As many as make up an even share of the text by the step's end."""
        free = len(row) - sum(job.frozen_mask)
        masked = [at for at, one in enumerate(row) if one == MASK]
        due = free * (step + 1) // job.kernel.steps - (free - len(masked))
        if job.kernel.name == "any":
            masked.sort(key=lambda at: _uniform(job.seed, step, at, "place"))
        return sorted(masked[: max(0, due)])


class ToyDiffusionEngine(EchoEngine):
    """Prompts, tokens and claims of the echo engine around a toy denoiser."""

    def __init__(
        self, table: Letters, length: int, *, steps: int | None = None, kernel: str = "left"
    ) -> None:
        super().__init__("toy", EchoOptions(context_tokens=400))
        can = frozenset({Capability.DENOISE, Capability.SEED, Capability.LOGPROBS})
        self.info = replace(self.info, capabilities=can)
        self.denoiser = ToyDenoiser(table, length)
        self._kernel = Kernel(kernel, steps or length)

    def course(self, prompt_tokens: int, how: Sampling) -> Course:
        length = self.denoiser.info.default_length
        if how.max_tokens is not None:
            length = min(length, how.max_tokens)
        check_kernel(self.denoiser.info, self._kernel, length)
        return Course(length, self._kernel, how.temperature)

    async def _run(
        self, prefix: Prefix, how: Sampling, seeds: Sequence[int]
    ) -> AsyncGenerator[Delta | Continuation]:
        ids, course = prefix.token_ids, self.course(len(prefix.token_ids), how)
        row, frozen = (
            self.denoiser.start(ids, course.length),
            frozen_prompt(len(ids), course.length),
        )
        jobs = [
            DenoiseJob(row, frozen, 0, course.kernel.steps, seed, course.temperature, course.kernel)
            for seed in seeds
        ]
        for index, done in enumerate(await self.denoiser.denoise(jobs)):
            answer = answer_ids(done.tokens, len(ids), self.info.eos_ids)
            is_ended = len(answer) < course.length
            yield Continuation(
                prefix=own_prefix(prefix).extended(answer),
                token_ids=answer,
                text=self.decode(answer),
                logps=done.logps[len(ids) : len(ids) + len(answer)],
                finish=Finish.STOP_TOKEN if is_ended else Finish.LENGTH,
                index=index,
                nfe=done.nfe,
            )


def letter_of(token: int) -> str:
    """The letter that a token stands for."""
    return END if token == EOS else chr(token)


def _draw(letters: Mapping[str, float], job: DenoiseJob, step: int, at: int) -> str:
    if job.temperature == 0:
        return max(letters, key=lambda one: letters[one])
    names = list(letters)
    bounds = list(accumulate(letters.values()))
    return names[bisect_right(bounds, _uniform(job.seed, step, at, "letter") * bounds[-1])]


def _uniform(*key: object) -> float:
    return random.Random("|".join(map(str, key))).random()
