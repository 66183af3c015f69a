"""What an upstream is: as the operator states it, as its kind is known to be, or as it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.base import Capability, EngineInfo
from engines.errors import ModelLoadError
from engines.openai_dialects import DIALECTS, PLAIN, Dialect, context_of, dialect_of
from engines.openai_options import OpenAIOptions
from engines.openai_request import Render, Wire
from engines.openai_upstream import Upstream


def discover(model_id: str, model: str, chosen: OpenAIOptions) -> tuple[EngineInfo, Upstream, Wire]:
    """The upstream and how to speak to it. What is stated is not asked.

    Raises:
        ModelLoadError: It does not answer, has not this model, or does not tell what must be known.
    """
    upstream = Upstream(model_id, model, chosen)
    is_stated = chosen.dialect != "auto" and chosen.context_tokens is not None
    entry = {} if is_stated else upstream.entry() or {}
    dialect = dialect_of(entry) if chosen.dialect == "auto" else DIALECTS[chosen.dialect]
    if not _may_continue(entry):
        dialect = replace(dialect, continues=None)
    wire = _wire(model_id, chosen, dialect)
    context_tokens = chosen.context_tokens or context_of(entry)
    if context_tokens is None:
        raise ModelLoadError(
            model_id,
            f"{chosen.base_url} does not tell the context length of {model!r}: set "
            "engine.options.context_tokens",
        )
    capabilities = {Capability.CONTINUE_TEXT if wire.can_continue else Capability.CHAT_ONLY}
    capabilities |= _found(chosen, dialect, entry, upstream)
    info = EngineInfo(
        model_id=model_id,
        context_tokens=context_tokens,
        vocab_size=0,
        eos_ids=frozenset(),
        tokenizer_hash="",
        parameters=0,
        capabilities=frozenset(capabilities),
        step_delimiters=chosen.step_delimiters,
        max_step_tokens=chosen.max_step_tokens,
    )
    return info, upstream, wire


def _found(
    chosen: OpenAIOptions, dialect: Dialect, entry: Mapping[str, Any], upstream: Upstream
) -> set[Capability]:
    """Which of LOGPROBS and SEED there are: as stated, as known, as told, or as seen."""
    if chosen.capabilities is not None:
        return set(chosen.capabilities)
    known = {Capability.LOGPROBS: dialect.has_logprobs, Capability.SEED: dialect.has_seed}
    found = {name for name, has in known.items() if has}
    told = entry.get("bough")
    if isinstance(told, Mapping):
        listed = told.get("capabilities") or ()
        found |= {name for name in known if str(name) in listed}
    elif dialect is PLAIN and chosen.probe and upstream.names_tokens():
        found.add(Capability.LOGPROBS)
    return found


def _may_continue(entry: Mapping[str, Any]) -> bool:
    """Whether what a bough says of its model leaves open that answers can be gone on with."""
    told = entry.get("bough")
    if not isinstance(told, Mapping):
        return True
    return bool({"tokens", "continue_text"} & set(told.get("capabilities") or ()))


def _wire(model_id: str, chosen: OpenAIOptions, dialect: Dialect) -> Wire:
    if chosen.mode == "completions" or (chosen.mode == "auto" and chosen.chat_template):
        assert chosen.chat_template is not None
        return Wire(dialect, render=_renderer(chosen.chat_template))
    if chosen.mode == "chat":
        return Wire(dialect)
    style = chosen.continue_style or dialect.continues
    if style is None and chosen.mode == "continue":
        raise ModelLoadError(
            model_id,
            f"options.mode continue: a {dialect.name} upstream is not known to continue messages; "
            "set options.continue_style to flag, prefix or bare",
        )
    return Wire(dialect, continues=style)


def _renderer(directory: Path) -> Render:
    """The template of a local model directory.

    Raises:
        ModelLoadError: It cannot be read, or what reads it is not installed.
    """
    try:
        from engines.embedded.tokenizer import ChatTokenizer
    except ImportError as err:
        raise ModelLoadError(
            directory,
            f"{err}; options.chat_template needs the extra of pip install '.[torch]' in bough",
        ) from err
    tokenizer = ChatTokenizer(directory)
    return lambda messages: tokenizer.render(messages, tools=None, continue_final=False)
