"""All workers of one engine: where a request goes, when it is sent again, who is alive.

A request is sent again only before its first token, and so often as the options say. A worker that
fails is left out until it is healthy again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from engines.base import TokenIds
from engines.errors import EngineClosed, EngineOverloaded
from engines.sglang_discovery import WorkerInfo
from engines.sglang_options import SGLangOptions
from engines.sglang_routing import PrefixMap, Routing
from engines.sglang_wire import News, NotTaken
from engines.sglang_worker import Worker

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0


class Pool:
    """The workers.

    Args:
        engine: The model id, for messages.
        workers: At least one.
        options: Thresholds and limits.
    """

    def __init__(self, engine: str, workers: Sequence[Worker], options: SGLangOptions) -> None:
        self.workers = tuple(workers)
        self._engine = engine
        self._options = options
        routing = Routing(options.min_match, options.max_imbalance, options.max_load_ratio)
        self._map = PrefixMap([_cache_tokens(worker.info) for worker in workers], routing)
        self._leads: dict[tuple[str, TokenIds], asyncio.Event] = {}
        # declared once; a worker that comes back without is left out
        self._is_seeded = all(info.is_seeded for info in self._infos)
        self._reviving = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether any worker answers."""
        return any(worker.is_alive for worker in self.workers)

    @property
    def has_raw_logps(self) -> bool:
        """Whether every worker reports logps at temperature 1, as far as it is known now."""
        return all(info.has_raw_logps for info in self._infos)

    @property
    def priority_sign(self) -> int:
        """1 or, where smaller ones run first, -1; 0 where a worker takes no priorities."""
        infos = self._infos
        if not all(info.takes_priority for info in infos):
            return 0  # a server may refuse what it has no use for
        return -1 if infos[0].is_low_first else 1

    async def generate(
        self, ids: TokenIds, tenant: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[News]:
        """News of a request that continues `ids`; closing the generator aborts it.

        Raises:
            PromptError: A worker refuses it.
            EngineOverloaded: The workers take no more.
            EngineClosed: No worker answers, or the one that had it failed.
        """
        request = {**body, **_addressed(ids, tenant)}
        for attempt in range(self._options.max_retries + 1):
            drawn: list[int] = []
            try:
                at, lead = await self._place(ids, tenant)
                try:
                    async with aclosing(self.workers[at].generate(request)) as all_news:
                        async for news in all_news:
                            drawn += news.ids
                            if len(drawn) == len(news.ids) or news.finish is not None:
                                self._map.learn(at, (*ids, *drawn), tenant)
                                self._let_follow(lead, tenant, ids)
                            yield news
                finally:
                    self._let_follow(lead, tenant, ids)
                return
            except NotTaken as err:
                await self._wait(err, attempt)

    async def ask(
        self, ids: TokenIds, tenant: str, body: Mapping[str, Any]
    ) -> tuple[News, dict[str, Any]]:
        """The only reply of a request that draws at most one token: news, and `meta_info`.

        Raises:
            PromptError: A worker refuses it.
            EngineOverloaded: The workers take no more.
            EngineClosed: No worker answers, or the one that had it failed.
        """
        request = {**body, **_addressed(ids, tenant)}
        attempt = 0
        while True:
            try:
                at, lead = await self._place(ids, tenant)
                try:
                    reply = await self.workers[at].ask(request)
                    self._map.learn(at, ids, tenant)
                    return reply
                finally:
                    self._let_follow(lead, tenant, ids)
            except NotTaken as err:
                await self._wait(err, attempt)
                attempt += 1

    async def watch(self) -> None:
        """Look after the workers for ever."""
        while True:
            await asyncio.sleep(self._options.health_s)
            await asyncio.gather(
                *(worker.look() for worker in self.workers if worker.is_alive), self._revive()
            )

    async def _revive(self) -> None:
        async with self._reviving:
            gone = [at for at, worker in enumerate(self.workers) if not worker.is_alive]
            back = await asyncio.gather(
                *(self.workers[at].revive(must_be_seeded=self._is_seeded) for at in gone)
            )
            for at, is_back in zip(gone, back, strict=True):
                if is_back:
                    self._map.forget(at, _cache_tokens(self.workers[at].info))

    async def _place(self, ids: TokenIds, tenant: str) -> tuple[int, asyncio.Event | None]:
        """The worker, and the event to set at its first token when others may wait for that.

        Raises:
            NotTaken: Nobody answers.
        """
        while True:
            if not self.is_alive:
                await self._revive()
            loads = {at: one.running for at, one in enumerate(self.workers) if one.is_alive}
            if not loads:
                raise NotTaken(
                    f"no worker of {self._engine!r} answers: {self._addresses}", is_gone=True
                )
            at, held = self._map.choose(ids, tenant, loads)
            if len(ids) - held < self._options.lead_tokens:
                return at, None
            leader = self._leads.get((tenant, ids))
            if leader is None:
                lead = self._leads[(tenant, ids)] = asyncio.Event()
                return at, lead
            await leader.wait()  # then this worker holds it, or another, or none

    def _let_follow(self, lead: asyncio.Event | None, tenant: str, ids: TokenIds) -> None:
        if lead is not None and not lead.is_set():
            lead.set()
            del self._leads[(tenant, ids)]

    async def _wait(self, refused: NotTaken, attempt: int) -> None:
        """Until the next try.

        Raises:
            EngineOverloaded: There is none; the workers take no more.
            EngineClosed: There is none; nobody answers.
        """
        wait_s = min(refused.retry_after_s or _FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S)
        if attempt >= self._options.max_retries:
            if refused.is_gone:
                raise EngineClosed(str(refused)) from refused
            raise EngineOverloaded(self._engine, max(1, round(wait_s))) from refused
        if not (refused.is_gone and self.is_alive):  # else another worker can have it at once
            await asyncio.sleep(wait_s)

    @property
    def _infos(self) -> list[WorkerInfo]:
        return [worker.info for worker in self.workers if worker.info is not None]

    @property
    def _addresses(self) -> str:
        return ", ".join(worker.url for worker in self.workers)


def _addressed(ids: TokenIds, tenant: str) -> dict[str, Any]:
    """Prompt and cache; the caches of two tenants have nothing in common."""
    address: dict[str, Any] = {"input_ids": list(ids)}
    return {**address, "extra_key": tenant} if tenant else address


def _cache_tokens(info: WorkerInfo | None) -> int:
    return 0 if info is None else info.cache_tokens
