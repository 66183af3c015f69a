"""Equal reproducible requests share one answer, where the operator wants that.

Off unless `cache.responses` is set. A request takes part when it fixes its seed or its temperature
is 0: only then is the stored answer the one that a new run would give. Strategies that go on with
what earlier requests grew (`keeps_trees`) take no part. Answers that a deadline cut short depend on
the clock and are not stored. The key holds everything that determines the reply, and the store
keeps tenants apart. A store that does not answer is a miss: counted, logged, never an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import Any, Final

from search.registry import strategy_class
from server.metrics import Metrics
from server.resolve import Plan
from server.settings import CacheSettings
from stores.base import Store
from stores.errors import StoreUnavailable, ValueTooLarge

log = logging.getLogger("bough.server")

_VERSION: Final = 1
_NOT_IN_KEY: Final = frozenset({"run_id", "tenant", "prompt"})
"""The store separates tenants; the messages and the tokenizer determine the prompt."""


class ResponseCache:
    """Replies by what determines them.

    Args:
        store: Where they are kept.
        metrics: Counts hits, misses and failures.
        settings: Whether, and for how long.
    """

    def __init__(self, store: Store, metrics: Metrics, settings: CacheSettings) -> None:
        self._store = store
        self._metrics = metrics
        self._settings = settings

    def takes(self, plan: Plan) -> bool:
        """Whether this request may be answered from here and stored here."""
        wanted = plan.wire.bough is None or plan.wire.bough.cache is not False
        if getattr(strategy_class(plan.asked), "keeps_trees", False):
            return False
        return self._settings.responses and wanted and plan.is_reproducible

    async def get(self, plan: Plan) -> dict[str, Any] | None:
        """The stored reply, or None."""
        if not self.takes(plan):
            return None
        try:
            found = await self._store.get(key_of(plan), tenant=plan.run.tenant)
        except StoreUnavailable as err:
            self._done_without("cache_get", err)
            return None
        self._metrics.cache.labels("miss" if found is None else "hit").inc()
        reply: dict[str, Any] | None = None if found is None else json.loads(found)
        return reply

    async def put(self, plan: Plan, reply: dict[str, Any]) -> None:
        """Store a reply, unless the clock had a part in it."""
        if not self.takes(plan) or reply["bough"]["stop_reason"] not in ("done", "budget"):
            return
        data = json.dumps(reply, separators=(",", ":")).encode()
        try:
            await self._store.set(
                key_of(plan), data, tenant=plan.run.tenant, ttl_s=self._settings.ttl_s
            )
        except (StoreUnavailable, ValueTooLarge) as err:
            self._done_without("cache_set", err)

    def _done_without(self, what: str, err: Exception) -> None:
        self._metrics.store_errors.labels(what).inc()
        log.warning("response cache: %s failed and was done without: %s", what, err)


def key_of(plan: Plan) -> str:
    """A digest of everything that determines the reply."""
    run = {
        field.name: getattr(plan.run, field.name)
        for field in dataclasses.fields(plan.run)
        if field.name not in _NOT_IN_KEY
    }
    if plan.wire.seed is None:
        del run["seed"]  # drawn, and of no consequence at temperature 0
    engine = plan.served.settings.engine
    parts = {
        "version": _VERSION,
        "model": (plan.served.model_id, engine.kind, engine.model, engine.options),
        "tokenizer": plan.served.engine.info.tokenizer_hash,
        "judge": plan.judge_id,
        "asked": plan.asked,
        "returns": plan.returns.model_dump(),
        "ignored": plan.ignored,
        "run": run,
    }
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return "response:" + hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return dict(value)
