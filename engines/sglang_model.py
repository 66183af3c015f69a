"""What is read from the model's own directory: tokenizer, template, vocabulary and stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import ModelLoadError

if TYPE_CHECKING:
    from engines.embedded.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class LocalModel:
    """A model directory, as far as a client of its server needs it.

    Attributes:
        tokenizer: Text to ids and back, and the chat template.
        token_bytes: Bytes of every id of the vocabulary; the unused ids at its end have none.
        vocab_size: Rows of the logits.
        eos_ids: Ids that end an answer.
        step_delimiters: Strings that end a reasoning step.
        max_step_tokens: The longest step worth waiting for.
        architecture: The first that config.json names; empty without one.
    """

    tokenizer: ChatTokenizer
    token_bytes: tuple[bytes, ...]
    vocab_size: int
    eos_ids: frozenset[int]
    step_delimiters: tuple[str, ...]
    max_step_tokens: int
    architecture: str = ""


def read_model(directory: Path) -> LocalModel:
    """Read `directory`.

    Raises:
        ModelLoadError: It is not here, something in it is wrong, or the tokenizer's packages are
            missing.
    """
    if not directory.is_dir():
        raise ModelLoadError(
            directory,
            "the model's tokenizer is needed on this machine too: copy its directory without the "
            "weights here and set the option tokenizer",
        )
    try:
        from engines.embedded.config import read_json
        from engines.embedded.tokenizer import ChatTokenizer
    except ImportError as err:
        raise ModelLoadError(
            directory, f"{err.name} is not installed: pip install '.[sglang]' in bough's checkout"
        ) from err
    tokenizer = ChatTokenizer(directory)
    config = read_json(directory / "config.json")
    steps = _optional(directory / "bough.json")
    vocab_size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ModelLoadError(directory / "config.json", "the key 'vocab_size' is missing")
    unused = (b"",) * max(0, vocab_size - tokenizer.size)
    return LocalModel(
        tokenizer=tokenizer,
        token_bytes=(*tokenizer.token_bytes, *unused),
        vocab_size=vocab_size,
        eos_ids=frozenset(
            token
            for source in (config, _optional(directory / "generation_config.json"))
            for token in _ids(source.get("eos_token_id"))
            if token < vocab_size
        ),
        step_delimiters=tuple(steps.get("step_delimiters", ("\n\n",))),
        max_step_tokens=int(steps.get("max_step_tokens", 256)),
        architecture=next(iter(config.get("architectures") or ()), ""),
    )


def _optional(path: Path) -> Mapping[str, Any]:
    from engines.embedded.config import read_json

    return read_json(path) if path.exists() else {}


def _ids(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [token for token in value if isinstance(token, int)] if isinstance(value, list) else []
