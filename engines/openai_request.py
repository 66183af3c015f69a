"""One request to an upstream: what cannot be sent is refused, the rest is its body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from engines.base import Capability, ChatMessage, EngineInfo, Sampling
from engines.errors import UnsupportedByEngine
from engines.openai_dialects import ContinueStyle, Dialect
from engines.openai_prefix import TextPrefix

Render = Callable[[tuple[ChatMessage, ...]], str]

_SEED_MASK: Final = 2**31 - 1  # what every server takes for a seed


@dataclass(frozen=True)
class Wire:
    """How to speak to one upstream.

    Attributes:
        dialect: What it understands.
        continues: How a chat is continued; None where it cannot be.
        render: Makes the prompt of `/v1/completions`; None sends chats.
    """

    dialect: Dialect
    continues: ContinueStyle | None = None
    render: Render | None = None

    @property
    def path(self) -> str:
        """The route."""
        return "/chat/completions" if self.render is None else "/completions"

    @property
    def can_continue(self) -> bool:
        """Whether an unfinished answer can be gone on with."""
        return self.render is not None or self.continues is not None


@dataclass(frozen=True)
class Bound:
    """The most tokens of one request, and what reaching it means; None is no bound."""

    tokens: int | None
    why: Literal["length", "step_length", "context"]


def bound_of(how: Sampling, position: int) -> Bound:
    """What is left of the answer, or of the step, whichever ends first."""
    rest = None if how.max_tokens is None else max(0, how.max_tokens - position)
    step = how.max_step_tokens
    if rest is not None and (step is None or rest <= step):
        return Bound(rest, "length")
    return Bound(step, "context" if step is None else "step_length")


def refuse_unsendable(how: Sampling, prefix: TextPrefix, wire: Wire, info: EngineInfo) -> None:
    """Refuse what this upstream cannot honour.

    Raises:
        UnsupportedByEngine: Names the option, and what to do.
    """

    def refuse(name: str, why: str) -> None:
        raise UnsupportedByEngine(name, info.model_id, why)

    for name in ("schedule", "drafter", "constraint"):
        if getattr(how, name) is not None:
            refuse(name, "upstreams are asked for plain text; leave it out")
    if how.ban_ids:
        refuse("ban_ids", "the upstream's tokens are not known here; leave it out")
    if how.logprobs is not None and Capability.LOGPROBS not in info.capabilities:
        refuse("logprobs", "its upstream is not known to tell them; leave it out")
    for name in ("top_k", "min_p", "repetition_penalty", "logit_bias", "min_tokens"):
        if getattr(how, name) != getattr(_USUAL, name) and name not in wire.dialect.fields:
            refuse(name, f"a {wire.dialect.name} upstream does not take it; leave it out")
    if how.stop_token_ids and "stop_token_ids" not in wire.dialect.fields:
        refuse("stop_token_ids", f"a {wire.dialect.name} upstream does not take them; use stop")
    is_part = bool(prefix.written or how.boundaries or how.max_step_tokens)
    if how.min_tokens and (how.stop or is_part):
        refuse("min_tokens", "text tells no tokens, so it holds for whole answers without stops")
    if is_part and (how.presence_penalty or how.frequency_penalty):
        name = "presence_penalty" if how.presence_penalty else "frequency_penalty"
        refuse(name, "the upstream takes earlier steps for the prompt; use whole answers")
    if prefix.written and not wire.can_continue:
        refuse(
            Capability.CONTINUE_TEXT,
            "its upstream answers whole chats only; set engine.options.mode if it can do more",
        )


def stops_sent(how: Sampling, wire: Wire) -> tuple[str, ...]:
    """The stop strings that the upstream is told of; the others only we look for.

    Boundaries are sent only to those who leave them in the text: cut off, a boundary could not be
    told from the answer's end.
    """
    wanted = how.stop
    if wire.dialect.keeps_stop is not None and how.logprobs is None:
        wanted += how.boundaries
    return tuple(dict.fromkeys(wanted))[: wire.dialect.max_stops]


def body_of(
    how: Sampling, prefix: TextPrefix, wire: Wire, seed: int | None, max_tokens: int | None
) -> dict[str, Any]:
    """The body, without the model's name."""
    dialect = wire.dialect
    usage: dict[str, bool] = {"include_usage": True}
    if dialect.running_usage:
        usage["continuous_usage_stats"] = True
    body: dict[str, Any] = {
        **_prompt(prefix, wire),
        "temperature": how.temperature,
        "stream_options": usage,
        **_optional(how, dialect),
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if seed is not None:
        body["seed"] = seed & _SEED_MASK
    if stops := stops_sent(how, wire):
        body["stop"] = list(stops)
        if dialect.keeps_stop is not None:
            body[dialect.keeps_stop] = True
    if how.logprobs is not None:
        if wire.render is None:
            body |= {"logprobs": True, "top_logprobs": how.logprobs}
        else:
            body["logprobs"] = how.logprobs
    return body


_USUAL: Final = Sampling()


def _optional(how: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Fields that differ from what holds without them."""
    names = ("top_p", "presence_penalty", "frequency_penalty")
    fields = {name: getattr(how, name) for name in names}
    sent = {name: value for name, value in fields.items() if value != getattr(_USUAL, name)}
    for ours, theirs in dialect.fields.items():
        value = getattr(how, ours)
        if value != getattr(_USUAL, ours):
            sent[theirs] = _plain(value)
    return sent


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, frozenset):
        return sorted(value)
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else value


def _prompt(prefix: TextPrefix, wire: Wire) -> dict[str, Any]:
    messages = prefix.conversation.messages
    if wire.render is not None:
        return {"prompt": wire.render(messages) + prefix.written, **wire.dialect.raw_prompt}
    if not prefix.written:
        return {"messages": list(messages)}
    last = {"role": "assistant", "content": prefix.written}
    if wire.continues == "prefix":
        return {"messages": [*messages, {**last, "prefix": True}]}
    body: dict[str, Any] = {"messages": [*messages, last]}
    if wire.continues == "flag":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body
