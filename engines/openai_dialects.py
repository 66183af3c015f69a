"""What is known of servers that speak OpenAI's schema, as data.

`/v1/models` names the owner of a model, and the owner tells the server apart. What no row knows is
the plain dialect: OpenAI's own fields, chat only, nothing declared that was not stated or seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

ContinueStyle: TypeAlias = Literal["flag", "prefix", "bare"]
"""How a chat is asked to go on with its last, unfinished assistant message.

- ``flag``: ``continue_final_message: true, add_generation_prompt: false`` (vLLM, SGLang);
- ``prefix``: ``"prefix": true`` in the message (DeepSeek, Mistral);
- ``bare``: nothing, the last message being the assistant's is enough (llama.cpp).
"""


@dataclass(frozen=True)
class Dialect:
    """One kind of server.

    Attributes:
        name: As in `options.dialect`.
        owners: What `/v1/models` gives as ``owned_by``.
        fields: Names on its wire, by our names, of sampling options that not everybody has.
        max_stops: Stop strings that one request may carry.
        keeps_stop: Field that leaves the stop string in the text, so that it can be told from an
            answer that ended by itself.
        continues: How a chat continues an assistant message; None where it is not known to.
        has_seed: Whether the same seed gives the same text.
        has_logprobs: Whether chat answers ``logprobs`` with the text of every token.
        running_usage: Whether every chunk can carry the usage so far.
        raw_prompt: Fields that keep `/v1/completions` from adding tokens to a rendered prompt.
    """

    name: str
    owners: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    max_stops: int = 4
    keeps_stop: str | None = None
    continues: ContinueStyle | None = None
    has_seed: bool = False
    has_logprobs: bool = False
    running_usage: bool = False
    raw_prompt: Mapping[str, Any] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_VLLM_FIELDS: Final = _same(
    "top_k", "min_p", "repetition_penalty", "logit_bias", "stop_token_ids", "min_tokens"
)

PLAIN: Final = Dialect("plain", fields=_same("logit_bias"))

DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (
        PLAIN,
        Dialect(
            "vllm",
            owners=("vllm",),
            fields=_VLLM_FIELDS,
            keeps_stop="include_stop_str_in_output",
            continues="flag",
            has_seed=True,
            has_logprobs=True,
            running_usage=True,
            raw_prompt={"add_special_tokens": False},
        ),
        Dialect(
            # its seeds hold only with deterministic inference switched on, its log-probabilities
            # are those of the warmed distribution, its repetition penalty leaves the prompt out
            "sglang",
            owners=("sglang",),
            fields={name: name for name in _VLLM_FIELDS if name != "repetition_penalty"},
            max_stops=64,
            keeps_stop="no_stop_trim",
            continues="flag",
        ),
        Dialect(
            "llamacpp",
            owners=("llamacpp",),
            fields={**_same("top_k", "min_p"), "repetition_penalty": "repeat_penalty"},
            max_stops=64,
            continues="bare",
            has_seed=True,
            has_logprobs=True,
        ),
        Dialect("ollama", owners=("library",), max_stops=64, has_seed=True),
        Dialect("bough", owners=("bough",), fields=_VLLM_FIELDS, max_stops=64, continues="flag"),
    )
}
"""By name. What `bough` itself can do is read from its own list of models."""


def dialect_of(entry: Mapping[str, Any]) -> Dialect:
    """The dialect of a server, from what `/v1/models` says of one of its models."""
    owner = str(entry.get("owned_by", "")).lower()
    return next((one for one in DIALECTS.values() if owner in one.owners), PLAIN)


_CONTEXT_KEYS: Final = (
    ("max_model_len",),
    ("bough", "context_tokens"),
    ("meta", "n_ctx"),
    ("context_length",),
    ("context_window",),
)


def context_of(entry: Mapping[str, Any]) -> int | None:
    """The context length that a server tells of a model, where it tells one."""
    for path in _CONTEXT_KEYS:
        value: Any = entry
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int) and value > 1:
            return value
    return None
