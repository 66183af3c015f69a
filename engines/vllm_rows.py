"""Whose rows vLLM computes.

vLLM names no requests when it asks for drafts. Rows move between its steps, and two tenants may
have the same tokens in theirs, so tokens cannot tell tenants apart. Every request therefore carries
a label of tenant and run, which is read off the worker's own lists; a request without one is
neither drafted nor learnt from. Nothing here imports vLLM.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol

from engines.base import TokenIds

KEY: Final = "bough_draft"
"""Our name in a request's extra arguments and in vLLM's additional configuration."""


def label(tenant: str, root: TokenIds) -> dict[str, Any]:
    """Extra arguments of a request: whose it is, and its run, named by the prompt's tokens."""
    run = blake2b(array("q", root).tobytes(), digest_size=16).hexdigest()
    return {KEY: [tenant, run]}


@dataclass(frozen=True)
class Row:
    """One request in the batch.

    Attributes:
        tenant: Whose it is.
        run: Shared by the branches of one prompt.
        room: Tokens that it may still gain.
    """

    tenant: str
    run: str
    room: int


class Rows(Protocol):
    """Who is in which row now."""

    def first(self, count: int) -> Sequence[Row | None]:
        """The first `count` rows; None for one without a label."""


class RunnerRows:
    """The rows of vLLM's model runner, by the lists that its own suffix proposer reads."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def first(self, count: int) -> list[Row | None]:
        """See `Rows.first`."""
        runner = self._runner
        return [_row(runner.requests[name]) for name in runner.input_batch.req_ids[:count]]


def _row(state: Any) -> Row | None:
    params = state.sampling_params
    found = (params.extra_args or {}).get(KEY) if params is not None else None
    if found is None:
        return None
    tenant, run = found
    return Row(tenant, run, params.max_tokens - len(state.output_token_ids))
