"""Which positions a step reveals: the schedules of MDLM, LLaDA and Dream. No tensors, no model.

A `Walk` takes one job from its step to its stop step. It says what it must know of the model
next, or that it is done. Steps that reveal nothing it passes by itself, so that they cost nothing:
that is exact, because none of these models reads the time, and the same row gives the same
probabilities.

Sources: MDLM's ``ddpm_cache`` sampler; LLaDA's ``generate``; Dream's ``diffusion_generate``.
Differs: blocks and every option go with every kernel. Mask and banned tokens are never drawn.
Dream's draw of positions without replacement is made by adding Gumbel noise and taking the highest,
which has the same law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.diffusion.base import Denoised, DenoiseJob
from engines.embedded.sample import mix, uniforms

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MDLM_EPS: Final = 1e-5
DREAM_EPS: Final = 1e-3

_TOKENS: Final = 0
_POSITIONS: Final = 1
_BY_CHANCE: Final = frozenset({"mdlm", "origin"})
_BY_COUNT: Final = frozenset({"random", "low_confidence"})


def mdlm_chance(step: int, steps: int) -> float:
    """Probability with which each masked position is revealed, on the grid from 1 to 1e-5."""
    width = (1 - MDLM_EPS) / steps
    return width / (1 - step * width)


def origin_chance(step: int, steps: int) -> float:
    """The same on Dream's grid from 1 to 1e-3; the last step reveals all."""
    return 1.0 if step == steps - 1 else _dream_share(step, steps)


def llada_count(masked: int, steps_left: int) -> int:
    """Positions revealed with so many steps left: equal shares, the first ones larger by one."""
    return -(-masked // steps_left)


def dream_count(masked: int, step: int, steps: int) -> int:
    """Positions revealed at a step of Dream's grid; the last step reveals all."""
    return masked if step == steps - 1 else int(masked * _dream_share(step, steps))


def _dream_share(step: int, steps: int) -> float:
    width = (1 - DREAM_EPS) / steps
    return width / (1 - step * width)


@dataclass(frozen=True)
class Need:
    """What a walk must know of the model.

    Attributes:
        positions: Where it asks for a token, ascending.
        count: How many of them are revealed, the surest first; None reveals all.
        is_fill: The likeliest tokens are asked for, without chance.
    """

    positions: Ints
    count: int | None = None
    is_fill: bool = False


class Walk:
    """One job on its way.

    Args:
        job: As `engines.diffusion.base.check_job` passed it.
        mask_id: The model's mask.
    """

    def __init__(self, job: DenoiseJob, mask_id: int) -> None:
        self.job = job
        self.tokens: Ints = np.array(job.tokens, dtype=np.int64)
        self._mask_id = mask_id
        self._step = job.step
        self._nfe = 0
        self._logps = np.zeros(len(job.tokens))
        self._free: Ints = np.flatnonzero(~np.array(job.frozen_mask))
        length = len(self._free)
        self._block = job.kernel.block_length or length
        self._steps = job.kernel.steps * self._block // length  # of one block
        self._need: Need | None = None

    def next(self) -> Need | None:
        """What the next step that reveals anything asks of the model; None when the job is done."""
        while self._need is None and self._step < self.job.stop_step:
            self._need = self._planned()
            if self._need is None:
                self._step += 1
        return self._need

    def uniforms(self) -> Floats:
        """One number in [0, 1) for the token at each needed position."""
        return self._draws(_TOKENS, self._needed.positions)

    def reveal(self, ids: Ints, logps: Floats, confidence: Floats) -> None:
        """Take the model's answer.

        Args:
            ids: The token drawn at each needed position.
            logps: Its log-probability.
            confidence: How sure each one is; read where only some are revealed.
        """
        need = self._needed
        chosen = np.arange(len(ids))
        if need.count is not None and need.count < len(ids):
            chosen = self._surest(confidence, need)
        self.tokens[need.positions[chosen]] = ids[chosen]
        self._logps[need.positions[chosen]] = logps[chosen]
        self._nfe += 1
        self._need = None
        if need.is_fill or not self._leaves_noise():
            self._step += 1
        else:
            self._need = Need(self._masked(), is_fill=True)

    def result(self) -> Denoised:
        """The job done."""
        return Denoised(
            tokens=tuple(self.tokens.tolist()),
            step=self._step,
            nfe=self._nfe,
            logps=tuple(self._logps.tolist()),
        )

    @property
    def _needed(self) -> Need:
        if self._need is None:
            raise LookupError("the walk asks for nothing now")
        return self._need

    @property
    def _local(self) -> int:
        """The step within its block."""
        return self._step % self._steps

    def _masked(self) -> Ints:
        """Masked positions up to the end of the current block."""
        end = (self._step // self._steps + 1) * self._block
        inside = self._free[:end]
        masked: Ints = inside[self.tokens[inside] == self._mask_id]
        return masked

    def _planned(self) -> Need | None:
        """What this step reveals; None where nothing."""
        masked, name = self._masked(), self.job.kernel.name
        if not len(masked):
            return None
        if name in _BY_CHANCE:
            chance = mdlm_chance if name == "mdlm" else origin_chance
            is_hit = self._draws(_POSITIONS, masked) < chance(self._local, self._steps)
            if is_hit.any():
                return Need(masked[is_hit])
            return Need(masked, is_fill=True) if self._leaves_noise() else None
        left = self._steps - self._local
        count = (
            llada_count(len(masked), left)
            if name in _BY_COUNT
            else dream_count(len(masked), self._local, self._steps)
        )
        if count == 0:
            return None
        if name == "random":
            order = np.argsort(-self._draws(_POSITIONS, masked), kind="stable")
            return Need(np.sort(masked[order[:count]]))
        return Need(masked, count)

    def _leaves_noise(self) -> bool:
        """Whether this is the last step of an MDLM block, and masks stay that are to be filled."""
        kernel = self.job.kernel
        is_last = self._local == self._steps - 1
        return bool(
            kernel.name == "mdlm" and kernel.noise_removal and is_last and len(self._masked())
        )

    def _surest(self, confidence: Floats, need: Need) -> Ints:
        """Indices of the `count` highest, lower positions first among equals."""
        temperature = self.job.kernel.position_temperature
        if temperature > 0:
            uniform = np.maximum(self._draws(_POSITIONS, need.positions), 2.0**-53)
            confidence = confidence / temperature - np.log(-np.log(uniform))
        order = np.argsort(-confidence, kind="stable")
        return np.sort(order[: need.count])

    def _draws(self, stream: int, positions: Ints) -> Floats:
        """Numbers keyed by (seed, step, position) and by what they are for."""
        key = np.array([mix(mix(self.job.seed, stream), self._step)], dtype=np.uint64)
        return uniforms(key, positions.astype(np.uint64))
