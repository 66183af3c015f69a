"""A denoiser over a checkpoint in a local directory, on the thread that computes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import torch

from engines.base import TokenIds
from engines.diffusion.base import (
    KERNELS,
    Denoised,
    DenoiseJob,
    DenoiserInfo,
    check_job,
    started,
)
from engines.diffusion.batch import Batcher
from engines.diffusion.checkpoint import Checkpoint, Place
from engines.embedded.compute import compute_thread
from engines.embedded.config import read_json
from engines.errors import ModelLoadError, PromptError

GROUP: Final = "bough.denoisers"
"""Plugins: readers `Place -> Checkpoint` by `model_type`, in lower case."""


def read_checkpoint(directory: Path, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """The model in a directory, by its family's reader.

    Raises:
        ModelLoadError: No directory, no known family, or what the family's reader refuses.
    """
    if not directory.is_dir():
        raise ModelLoadError(directory, "no such directory")
    path = directory / "config.json"
    raw = read_json(path)
    family = str(raw.get("model_type")).lower()
    readers = {point.name: point for point in entry_points(group=GROUP)}
    if family not in readers:
        known = ", ".join(sorted(readers))
        raise ModelLoadError(
            path, f"model_type {raw.get('model_type')!r} is not served; served are {known}"
        )
    checkpoint = readers[family].load()(Place(directory, raw, dtype, device))
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint


class TorchDenoiser:
    """`engines.diffusion.base.Denoiser` over a checkpoint.

    Args:
        info: What it is.
        checkpoint: Its model.
        max_batch_tokens: The most tokens of one forward, padding included.
    """

    def __init__(self, info: DenoiserInfo, checkpoint: Checkpoint, max_batch_tokens: int) -> None:
        self.info = info
        network = checkpoint.network
        self._vocab_size = network.vocab_size
        self._batcher = Batcher(
            network, info.mask_id, max_batch_tokens, compute_thread(network.device.type)
        )

    def start(self, prompt: TokenIds, length: int) -> TokenIds:
        """See `Denoiser.start`."""
        self._require_ids(prompt)
        return started(self.info, prompt, length)

    async def denoise(self, jobs: Sequence[DenoiseJob]) -> list[Denoised]:
        """See `Denoiser.denoise`."""
        for job in jobs:
            check_job(self.info, job)
            self._require_ids(job.tokens)
        return await self._batcher.run(jobs) if jobs else []

    @property
    def batcher(self) -> Batcher:
        """Counts of what ran."""
        return self._batcher

    def close(self) -> None:
        """Fail what runs; further calls raise EngineClosed. Idempotent."""
        self._batcher.close()

    def _require_ids(self, ids: Sequence[int]) -> None:
        wrong = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong} is not in 0 … {self._vocab_size - 1}")


def open_checkpoint(
    model_id: str, directory: Path, *, dtype: torch.dtype, device: torch.device
) -> tuple[DenoiserInfo, Checkpoint]:
    """Read a checkpoint on the thread that computes.

    Raises:
        ModelLoadError: As `read_checkpoint`.
    """
    compute = compute_thread(device.type)
    checkpoint = compute.call(lambda: read_checkpoint(directory, dtype, device))
    others = tuple(name for name in KERNELS if name != checkpoint.kernel)
    info = DenoiserInfo(
        model_id=model_id,
        mask_id=checkpoint.mask_id,
        max_length=checkpoint.max_length,
        kernels=(checkpoint.kernel, *others),
        parameters=checkpoint.parameters,
    )
    return info, checkpoint
