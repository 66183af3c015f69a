"""The request's `bough` object, as types. The server checks values; nothing is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict


class Budget(TypedDict, total=False):
    """Bounds of the whole run; what is left out is not bounded by the request.

    `max_tokens` counts all generated tokens, the search's own included. `deadline_ms` is wall time.
    """

    max_tokens: int
    max_candidates: int
    max_reward_calls: int
    max_nfe: int
    deadline_ms: int


class Return(TypedDict, total=False):
    """What the reply carries beside the answer."""

    candidates: int
    trace: Literal["none", "summary", "full"]
    events: bool


# Written as a call because "return" is a keyword.
BoughOptions = TypedDict(
    "BoughOptions",
    {
        "strategy": str,
        "params": Mapping[str, Any],
        "reward_model": str,
        "budget": Budget,
        "return": Return,
        "cache": bool,
    },
    total=False,
)
"""Everything a request may say to bough; see GET /v1/strategies for names and parameters."""
