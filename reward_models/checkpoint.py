"""Opens a published reward model's directory on the embedded runtime, as its preset says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engines.embedded.config import read_json
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.weights import read_tensors
from engines.errors import ModelLoadError
from reward_models.base import RewardKind
from reward_models.errors import RewardLoadError
from reward_models.heads import Head, prediction_of, stack_of
from reward_models.layouts import layout_of
from reward_models.presets import Preset, choose
from reward_models.reader import ReadingJudge

_CARD: Final = "bough.json"
_PREFILLS: Final = ("hidden", "shown")
_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"


def open_checkpoint(
    model_id: str, model: str, options: Mapping[str, Any], kind: RewardKind
) -> ReadingJudge:
    """Serve a checkpoint that a preset describes.

    Args:
        model_id: The id on the wire.
        model: A Hugging Face model directory.
        options: ``preset``; for an outcome ``prefill``, hidden (the default) or shown, which
            ``bough.json`` in the directory may say too; and those of
            `engines.embedded.runtime.RuntimeOptions`.
        kind: What the judge was asked to be.

    Raises:
        RewardLoadError: No preset fits, or the checkpoint does not fit its preset.
        ModelLoadError: The decoder cannot be served, or an option is wrong.
    """
    directory = Path(model)
    ours = {"preset", "prefill"} if kind is RewardKind.OUTCOME else {"preset"}
    rest = {key: value for key, value in options.items() if key not in ours}
    parsed = RuntimeOptions.parse(model, rest)
    if not directory.is_dir():
        raise ModelLoadError(directory, "no such directory")
    tensors = read_tensors(directory)
    preset = choose(directory, options.get("preset"), tensors)
    require_kind(model_id, preset, kind)
    if preset.head.layers and _EMBEDDING in tensors:
        tensors[_OUTPUT] = tensors[_EMBEDDING]  # never asked for; the embedding stands in for it
    runtime = Runtime(directory, parsed, tensors=tensors)
    with closed_on_error(runtime):
        layout = layout_of(preset, runtime.tokenizer, directory)
        weights, device = runtime.decoder.weights, runtime.decoder.device
        head: Head
        if preset.head.layers:
            where = weights_file(directory)
            head = stack_of(preset.head, tensors, where, runtime.config.hidden, device)
        else:
            head = prediction_of(preset.head, weights.head, runtime.tokenizer, directory)
        info = preset.info(model_id, runtime.tokenizer.hash, weights.parameters)
        if kind is RewardKind.OUTCOME:
            info = replace(info, shows_prefill=shows_prefill(directory, options))
        return ReadingJudge(info, runtime, layout, head)


def shows_prefill(directory: Path, options: Mapping[str, Any]) -> bool:
    """Whether a judge is shown the beginning of an answer that the caller wrote.

    The option ``prefill`` says it, else that of ``bough.json``; hidden where neither does.

    Raises:
        RewardLoadError: It is neither hidden nor shown.
        ModelLoadError: ``bough.json`` is unreadable.
    """
    card = read_json(directory / _CARD) if (directory / _CARD).exists() else {}
    said = {**card, **options}.get("prefill", _PREFILLS[0])
    if said not in _PREFILLS:
        raise RewardLoadError(f"{directory}: prefill {said!r} must be hidden or shown")
    return bool(said == _PREFILLS[1])


@contextmanager
def closed_on_error(runtime: Runtime) -> Iterator[None]:
    """Take the runtime off the compute thread when what is built on it cannot be built."""
    try:
        yield
    except RewardLoadError:
        runtime.worker.close()
        raise


def require_kind(model_id: str, preset: Preset, kind: RewardKind) -> None:
    """Raise RewardLoadError unless the preset is of this kind."""
    if preset.kind is not kind:
        raise RewardLoadError(
            f"{model_id}: the preset {preset.name!r} judges by {preset.kind}, not by {kind}; "
            f"set kind = {preset.kind.value!r}"
        )


def weights_file(directory: Path) -> Path:
    """The file that says which tensors there are."""
    index = directory / "model.safetensors.index.json"
    return index if index.exists() else directory / "model.safetensors"
