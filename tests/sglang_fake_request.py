"""One request to the fake of SGLang: its parameters, what it gained, and why it is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import regex

from tests.sglang_fake_model import VOCAB_SIZE

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 128,
    "stop": None,
    "stop_token_ids": None,
    "stop_regex": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "n": 1,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "no_stop_trim": False,
    "stream_interval": None,
    "logit_bias": None,
    "sampling_seed": None,
    "custom_params": None,
}


class Refused(Exception):
    """A request that gets an error body."""

    def __init__(self, message: str, status: int = 400, *, is_plain: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"error": message if is_plain else {"message": message}}


@dataclass
class Live:
    """One request in the batch."""

    rid: str
    ids: list[int]
    params: dict[str, Any]
    body: dict[str, Any]
    index: int
    session: tuple[str, str | None] | None = None
    output: list[int] = field(default_factory=list)
    logps: list[list[Any]] = field(default_factory=list)
    tops: list[list[Any]] = field(default_factory=list)
    chosen: list[list[Any]] = field(default_factory=list)
    text: str = ""
    cached: int = 0
    sent: int = 0
    sent_text: int = 0
    finish: dict[str, Any] | None = None

    @property
    def wants_logps(self) -> bool:
        return bool(self.body.get("return_logprob"))

    @property
    def start(self) -> int:
        """Where the prompt's logprobs begin; its end where none are asked for."""
        start = self.body.get("logprob_start_len", -1)
        return start if self.wants_logps and start is not None and start >= 0 else len(self.ids)


@dataclass
class Node:
    """A finished request of a session."""

    ids: list[int]
    output: list[int]
    parent: str | None


def reward_of(ids: list[int]) -> float:
    """A reward without meaning, but the same for the same tokens."""
    return round(sum((at % 7 + 1) * token for at, token in enumerate(ids)) % 997 / 100 - 5, 4)


def item_of(value: Any, at: int) -> Any:
    return value[at] if isinstance(value, list) else value


def event_of(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def drop_node(nodes: dict[str, Node], rid: str) -> None:
    for child in [name for name, one in nodes.items() if one.parent == rid]:
        drop_node(nodes, child)
    del nodes[rid]


def is_fatal(body: dict[str, Any]) -> bool:
    return bool(body.get("return_logprob")) and (body.get("top_logprobs_num") or 0) > VOCAB_SIZE


def check_params(params: dict[str, Any]) -> None:
    most = params["max_new_tokens"]
    if not params["temperature"] >= 0:
        raise Refused(
            f"temperature must be a non-negative finite number, got {params['temperature']}."
        )
    if not 0 < params["top_p"] <= 1:
        raise Refused(f"top_p must be in (0, 1], got {params['top_p']}.")
    if most < 0:
        raise Refused(f"max_new_tokens must be at least 0, got {most}.")
    if params["min_new_tokens"] > most:
        raise Refused(f"min_new_tokens must be in [0, max_new_tokens({most})].")
    if len(params["stop"] or ()) > 32:
        raise Refused(f"at most 32 stop strings are allowed, got {len(params['stop'])}")
    for token in params["logit_bias"] or {}:
        if not 0 <= int(token) < VOCAB_SIZE:
            raise Refused(f"logit_bias must has keys in [0, {VOCAB_SIZE - 1}], got {token}.")
    if params["json_schema"] or params["ebnf"]:
        raise Refused("Failed to compile grammar: this fake compiles regular expressions only")
    if params["regex"]:
        try:
            regex.compile(params["regex"])
        except regex.error as err:
            raise Refused(f"Failed to compile regex grammar: {err}") from err
