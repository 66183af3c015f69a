"""Bough's end of what `engines.vllm_worker` adds to vLLM's workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from engines.base import TokenIds
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import Taught
from engines.errors import EngineClosed
from engines.token_prefix import TokenPrefix
from engines.vllm_proposer import Report
from engines.vllm_rows import label


class Drafts:
    """Labels requests, and speaks with the drafter in vLLM's process.

    Args:
        llm: An `AsyncLLM`.
        model_id: The id on the wire, for messages.
        drafter: Ours, by name, if there is one.
        has_access: Whether the workers have our methods.
    """

    def __init__(self, llm: Any, model_id: str, drafter: str | None, *, has_access: bool) -> None:
        self._llm = llm
        self._model_id = model_id
        self._drafter = drafter
        self._has_access = has_access
        self._begun: asyncio.Future[Any] | None = None
        self._taught: set[Taught] = set()
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a request runs."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    async def begin(self) -> None:
        """Prepare vLLM's workers before the first request; everybody waits for that one."""
        if not self._has_access:
            return
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._call("bough_begin_drafts"))
        await asyncio.shield(self._begun)

    def labelled(self, prefix: TokenPrefix, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a request, and whose it is; one for a single token needs no drafts."""
        if self._drafter is None or params["max_tokens"] <= 1:
            return params
        self._taught.add(Taught(self._drafter, prefix.tenant))
        return params | {"extra_args": label(prefix.tenant, root_of(prefix))}

    async def report(self) -> Report | None:
        """What the drafter did; that of the first rank, where there are several."""
        if self._drafter is None:
            return None
        found: Mapping[str, Any] = await self._first("bough_drafter_report")
        return Report(**found)

    def taught(self) -> list[Taught]:
        """Whose requests were drafted since the last snapshot of theirs."""
        return sorted(self._taught, key=astuple)

    async def snapshot(self, of: Taught) -> bytes:
        """What a tenant taught; of the first rank, where there are several."""
        await self._idle.wait()
        self._taught.discard(of)
        found: bytes = await self._first("bough_draft_snapshot", of.tenant)
        return found

    async def merge(self, of: Taught, data: bytes) -> None:
        """Learn a snapshot, on all ranks.

        Raises:
            DrafterError: Not a snapshot of this drafter.
        """
        await self._idle.wait()
        # vLLM brings no types of errors across.
        for refused in await self._call("bough_merge_drafts", of.tenant, data):
            if refused:
                raise DrafterError(refused)

    async def _first(self, method: str, *args: Any) -> Any:
        for found in await self._call(method, *args):
            if found is not None:
                return found
        raise EngineClosed(f"the drafter of model {self._model_id!r} failed and was put away")

    async def _call(self, method: str, *args: Any) -> list[Any]:
        try:
            answers: list[Any] = await self._llm.collective_rpc(method, args=args)
        except EngineDeadError as err:
            raise EngineClosed(f"the vLLM engine of model {self._model_id!r} died") from err
        return answers


def root_of(prefix: TokenPrefix) -> TokenIds:
    """The prompt that all branches of a run have in common."""
    return prefix.token_ids[: prefix.response_start]
