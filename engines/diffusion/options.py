"""Options of a diffusion engine, and what they make of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from engines.base import Sampling
from engines.diffusion.base import Course, DenoiserInfo, Kernel, check_kernel
from engines.diffusion.refusals import check_sampling
from engines.errors import DenoiseError, ModelLoadError, WrongLength


@dataclass(frozen=True)
class DiffusionOptions:
    """Knobs of a diffusion engine; every one may be set as an engine option of the same name.

    Attributes:
        device: cpu, cuda or cuda:N.
        dtype: float32 or bfloat16.
        kernel: How positions are picked; empty takes what the model's authors use.
        length: Tokens of a text where the request names no other.
        steps: Steps of a full run; 0 takes one per token.
        block_length: Tokens of a block; 0 takes the whole text as one.
        position_temperature: As in `Kernel`.
        noise_removal: As in `Kernel`.
        max_batch_tokens: The most tokens of one forward; one row always fits.
    """

    device: str = "cpu"
    dtype: str = "float32"
    kernel: str = ""
    length: int = 32
    steps: int = 0
    block_length: int = 0
    position_temperature: float = 0.0
    noise_removal: bool = True
    max_batch_tokens: int = 8192

    @classmethod
    def parse(cls, where: str, options: Mapping[str, Any]) -> DiffusionOptions:
        """Check names, types and bounds.

        Raises:
            ModelLoadError: An option is unknown or out of bounds.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        read: dict[str, Any] = {}
        for name, value in options.items():
            if name not in types:
                known = ", ".join(sorted(types))
                raise ModelLoadError(where, f"unknown engine option {name!r}; known are {known}")
            if types[name] is float and type(value) is int:
                value = float(value)
            if type(value) is not types[name]:
                raise ModelLoadError(
                    where, f"engine option {name!r} must be {types[name].__name__}, not {value!r}"
                )
            read[name] = value
        parsed = cls(**read)
        if parsed.dtype not in ("float32", "bfloat16"):
            raise ModelLoadError(
                where, f"dtype {parsed.dtype!r} is not served; float32 and bfloat16 are"
            )
        low = {"length": 1, "steps": 0, "block_length": 0, "max_batch_tokens": 1}
        for name, least in low.items():
            if getattr(parsed, name) < least:
                raise ModelLoadError(
                    where,
                    f"engine option {name!r} must be at least {least}, not {getattr(parsed, name)}",
                )
        return parsed

    def torch_device(self, where: str) -> torch.device:
        """The device, if there is such a one.

        Raises:
            ModelLoadError: There is none.
        """
        try:
            device = torch.device(self.device)
        except RuntimeError as err:
            raise ModelLoadError(where, f"engine option device: {err}") from err
        if device.type not in ("cpu", "cuda"):
            raise ModelLoadError(where, f"device {self.device!r} is not served; cpu and cuda are")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelLoadError(
                where, f"device {self.device!r} was asked for, but torch finds no CUDA device"
            )
        return device

    @property
    def torch_dtype(self) -> torch.dtype:
        """What it computes in."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def fitted(where: str, info: DenoiserInfo, options: DiffusionOptions) -> DenoiserInfo:
    """The denoiser with the operator's kernel first and a length that it has.

    Raises:
        ModelLoadError: The model has no such kernel, or the options do not go together.
    """
    name = options.kernel or info.kernels[0]
    length = min(options.length, info.max_length - 1)
    if options.block_length and not options.length % options.block_length:
        length -= length % options.block_length
    chosen = replace(
        info,
        kernels=(name, *(one for one in info.kernels if one != name)),
        default_length=length,
    )
    try:
        check_kernel(info, _kernel(options, name, length, Sampling()), length)
    except DenoiseError as err:
        raise ModelLoadError(where, f"engine options: {err}") from err
    return chosen


def course(
    info: DenoiserInfo, options: DiffusionOptions, prompt_tokens: int, how: Sampling
) -> Course:
    """What one child of `sample` is; see `DenoisingEngine.course`.

    Raises:
        WrongLength: `how.max_tokens` has no room beside the prompt, or does not go into blocks.
        UnsupportedByEngine: An option of `how` that a text revealed in any order cannot have.
    """
    check_sampling(info.model_id, how)
    room = info.max_length - prompt_tokens
    length = how.max_tokens
    if length is None:
        length = min(info.default_length, room)
        length -= length % (options.block_length or 1)
    if not 1 <= length <= room:
        raise WrongLength(
            f"max_completion_tokens is {length}; beside a prompt of {prompt_tokens} tokens model "
            f"{info.model_id!r} has room for {max(0, room)}: a diffusion model writes on a canvas "
            "of exactly that length, so ask for 1 to that many"
        )
    kernel = _kernel(options, info.kernels[0], length, how)
    check_kernel(info, kernel, length)
    return Course(length, kernel, how.temperature)


def _kernel(options: DiffusionOptions, name: str, length: int, how: Sampling) -> Kernel:
    block = options.block_length or length
    blocks = max(1, length // block)
    steps = options.steps or length
    return Kernel(
        name=name,
        # Fewer steps than a block needs, or steps that the blocks cannot share, are rounded up.
        steps=-(-steps // blocks) * blocks,
        block_length=options.block_length or None,
        position_temperature=options.position_temperature,
        top_p=how.top_p,
        top_k=how.top_k,
        noise_removal=options.noise_removal,
        ban_ids=how.ban_ids,
    )
