"""Published reward models as data: `presets.toml`, read and matched to model directories.

A preset says how a checkpoint wants to be asked (layout), what makes a value of its states (head),
and how its authors make one value of many steps. It holds no tensors and knows no engine, so every
engine's judge reads the same one. Facts and their sources stand in `presets.toml`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from engines.embedded.config import read_json
from engines.errors import ModelLoadError
from reward_models.base import Aggregate, RewardInfo, RewardKind
from reward_models.errors import RewardLoadError

_FILE: Final = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True)
class LayoutSpec:
    """The text that a reward model reads; see `reward_models.layouts` for the forms.

    Attributes:
        form: tags, lines, turns or whole.
        chat: Whether the conversation goes through the chat template.
        system: The system message of conversations that have none.
        bos: Whether the tokenizer's beginning-of-sequence token comes first.
        joint: Between the question and the first step, where there is no chat template.
        gap: Between a step and its tag.
        tag: What ends a step, and where its value is read: one token.
        between: Between a tag and the next step.
        reply: What the model is taken to have said of a step; its prediction is the value.
    """

    form: Literal["tags", "lines", "turns", "whole"]
    chat: bool = False
    system: str = ""
    bos: bool = False
    joint: str = ""
    gap: str = ""
    tag: str = ""
    between: str = ""
    reply: str = ""


@dataclass(frozen=True)
class HeadSpec:
    """What makes a value of a hidden state; see `reward_models.heads`.

    Attributes:
        layers: Linear layers by name, with ReLU between two.
        outputs: Width of the last of them; where it is 2, the second is the good one.
        has_bias: Whether they have biases.
        good: The token that praises, where the head is the model's own prediction.
        bad: The token that blames.
        activation: softmax, sigmoid or none.
    """

    activation: Literal["softmax", "sigmoid", "none"]
    layers: tuple[str, ...] = ()
    outputs: int = 1
    has_bias: bool = False
    good: str = ""
    bad: str = ""


@dataclass(frozen=True)
class Preset:
    """One published reward model.

    Attributes:
        name: What `options.preset` calls it.
        model: The checkpoint it was written for.
        sources: Where its facts are published.
        kind: outcome or process.
        decoders: `model_type`s it may stand on.
        architectures: Names in `architectures` that mean this preset and no other.
        tensor: A tensor that means this preset and no other; empty where there is none.
        separator: Characters that end a step in its data.
        aggregate: How its authors make one value of the steps' values.
    """

    name: str
    model: str
    sources: tuple[str, ...]
    kind: RewardKind
    decoders: tuple[str, ...]
    layout: LayoutSpec
    head: HeadSpec
    architectures: tuple[str, ...] = ()
    tensor: str = ""
    separator: str = "\n"
    aggregate: Aggregate = "last"

    @property
    def low(self) -> float:
        """The smallest value; minus infinity for a bare logit."""
        return -math.inf if self.head.activation == "none" else 0.0

    @property
    def high(self) -> float:
        """The largest value."""
        return math.inf if self.head.activation == "none" else 1.0

    def info(self, model_id: str, tokenizer_hash: str, parameters: int) -> RewardInfo:
        """What callers may know of a judge of this preset."""
        return RewardInfo(
            model_id=model_id,
            kind=self.kind,
            low=self.low,
            high=self.high,
            tokenizer_hash=tokenizer_hash,
            parameters=parameters,
            aggregate=self.aggregate,
            reads_whole=self.layout.form != "lines",  # there every line is a step, whoever asks
        )


@cache
def presets() -> Mapping[str, Preset]:
    """All presets by name."""
    return {name: _preset(name, raw) for name, raw in tomllib.loads(_FILE.read_text()).items()}


def choose(directory: Path, name: str | None, tensors: Collection[str]) -> Preset:
    """The preset called `name`, or the one that the directory's files name.

    Args:
        directory: A Hugging Face model directory.
        name: `options.preset`, if it was given.
        tensors: Names of the directory's tensors.

    Raises:
        RewardLoadError: No such preset, none recognised, or one for another kind of decoder.
    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    preset = _named(name) if name is not None else _recognised(path, config, tensors)
    if config.get("model_type") not in preset.decoders:
        raise RewardLoadError(
            f"{path}: model_type {config.get('model_type')!r} does not carry the preset "
            f"{preset.name!r}, which stands on {', '.join(preset.decoders)}"
        )
    return preset


def _named(name: object) -> Preset:
    known = presets()
    if isinstance(name, str) and name in known:
        return known[name]
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise RewardLoadError(
        f"options.preset {name!r} is not known{hint} (known are {', '.join(known)})"
    )


def _recognised(path: Path, config: Mapping[str, Any], tensors: Collection[str]) -> Preset:
    listed = config.get("architectures") or []
    for preset in presets().values():
        if preset.tensor in tensors or any(name in listed for name in preset.architectures):
            return preset
    raise RewardLoadError(
        f"{path}: architectures {listed!r} names no reward model that is known by it; "
        f"say which with options.preset ({', '.join(presets())})"
    )


def _preset(name: str, raw: Mapping[str, Any]) -> Preset:
    lists = ("sources", "decoders", "architectures")
    head = {**raw["head"], "layers": tuple(raw["head"].get("layers", ()))}
    given: dict[str, Any] = {
        **raw,
        **{key: tuple(raw[key]) for key in lists if key in raw},
        "kind": RewardKind(raw["kind"]),
        "layout": LayoutSpec(**raw["layout"]),
        "head": HeadSpec(**head),
    }
    return Preset(name=name, **given)
