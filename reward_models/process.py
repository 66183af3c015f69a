"""A process reward model on the embedded runtime: the chance, after each step, to be right.

Two kinds of directory are served. One with `bough.json` is ours: the base decoder, with an adapter
merged in where there is one, reads the conversation and the answer. With ``h`` its final-norm
hidden state at the last token of a step,

    reward = sigmoid(weight @ h + bias + likelihood * sum(log p))

where the sum runs over the answer's tokens up to the end of that step (nats, temperature 1, by the
same decoder); a head without `likelihood` leaves it out. Any other is a published checkpoint, which
a preset describes (`reward_models.presets`).

Source: Let's Verify Step by Step, Lightman et al., arXiv 2305.20050; labels by Monte-Carlo
completion as in Math-Shepherd, arXiv 2312.08935; rewards from log-likelihoods, Yuan et al., arXiv
2412.01981.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engines.embedded.config import read_json
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.weights import read_tensors
from engines.errors import ModelLoadError
from reward_models.base import RewardInfo, RewardKind
from reward_models.checkpoint import closed_on_error, open_checkpoint
from reward_models.errors import RewardLoadError
from reward_models.heads import LikelihoodHead, checked
from reward_models.layouts import PlainSteps
from reward_models.lora import merge, read_file
from reward_models.reader import ReadingJudge

_CARD = "bough.json"


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ReadingJudge:
    """Serve a process reward model directory.

    Args:
        model_id: The id on the wire.
        model: The directory: one with `bough.json` (its `base` is a path from there), perhaps an
            adapter, and `head.safetensors`; or a published checkpoint.
        options: See `engines.embedded.runtime.RuntimeOptions`; ``preset`` names a published one.

    Raises:
        RewardLoadError: The adapter or head is wrong, or no preset fits.
        ModelLoadError: The base or an option is wrong.
    """
    directory = Path(model)
    is_ours = (directory / _CARD).exists() or not (directory / "config.json").exists()
    if "preset" in options or not is_ours:
        return open_checkpoint(model_id, model, options, RewardKind.PROCESS)
    return _open_ours(model_id, directory, RuntimeOptions.parse(model, options))


def _open_ours(model_id: str, directory: Path, options: RuntimeOptions) -> ReadingJudge:
    card = _card(directory)
    base = (directory / str(card["base"])).resolve()
    tensors = read_tensors(base)
    if any(directory.glob("adapter_*")):
        tensors = merge(tensors, directory)
    runtime = Runtime(base, options, tensors=tensors)
    with closed_on_error(runtime):
        hidden, decoder = runtime.config.hidden, runtime.decoder
        path = directory / "head.safetensors"
        read = read_file(path)
        read.setdefault("likelihood", torch.zeros(1))
        weight = checked(read, "weight", (1, hidden), path)[0]
        bias = checked(read, "bias", (1,), path)
        likelihood = float(checked(read, "likelihood", (1,), path))
        head = LikelihoodHead(
            weight.to(decoder.device), bias.to(decoder.device), likelihood, decoder.logits
        )
        info = RewardInfo(
            model_id=model_id,
            kind=RewardKind.PROCESS,
            tokenizer_hash=runtime.tokenizer.hash,
            parameters=decoder.weights.parameters + hidden + 2,
        )
        return ReadingJudge(info, runtime, PlainSteps(runtime.tokenizer), head)


def _card(directory: Path) -> dict[str, Any]:
    try:
        card = read_json(directory / _CARD)
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    if "base" not in card:
        raise RewardLoadError(f"{directory / _CARD}: the key 'base' is missing")
    return card
