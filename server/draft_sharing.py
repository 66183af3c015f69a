"""What drafters learn goes to the store and comes from it, per tenant and model.

Every so often each engine's lessons are merged with the stored ones, both ways, while the engine is
idle: no token waits for it, and a server that is never idle shares nothing. Only what was taught
here since the last time is looked at, so a replica begins to learn from the others with a tenant's
first drafted request. A store that does not answer costs the lessons until next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from engines.base import Engine
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import SharesDrafts, Taught
from engines.errors import EngineClosed
from server.catalog import Catalog
from server.metrics import Metrics
from server.settings import DraftSettings, Settings
from stores.base import Conflict, Store
from stores.errors import StoreUnavailable, ValueTooLarge

log = logging.getLogger("bough.server")


@asynccontextmanager
async def sharing_drafts(
    settings: Settings, catalog: Catalog, store: Store, metrics: Metrics
) -> AsyncIterator[None]:
    """Share in the background, where the store is one that replicas share."""
    is_shared = not settings.store.url.get_secret_value().startswith("memory:")
    if not is_shared or not settings.drafts.share_s:
        yield
        return
    engines = {name: one.engine for name, one in catalog.models.items()}
    sharing = DraftSharing(engines, store, settings.drafts, metrics)
    task = asyncio.create_task(sharing.run(), name="share-drafts")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class DraftSharing:
    """Exchanges lessons between engines and a store.

    Args:
        engines: By the model's id.
        store: Shared by the replicas.
        settings: How often.
        metrics: Counts failures of the store.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        store: Store,
        settings: DraftSettings,
        metrics: Metrics,
    ) -> None:
        self._engines = engines
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._read: dict[tuple[str, Taught], int] = {}  # versions that are merged already
        self._owed: set[tuple[str, Taught]] = set()  # not written, though the engine thinks so

    async def run(self) -> None:
        """Share until it is cancelled; an engine that is never idle holds up no other."""
        async with asyncio.TaskGroup() as engines:
            for model_id in self._engines:
                engines.create_task(self._keep_sharing(model_id))

    async def _keep_sharing(self, model_id: str) -> None:
        while True:
            await asyncio.sleep(self._settings.share_s)
            await self._share_of(model_id)

    async def share(self) -> None:
        """Exchange, once, all that was taught since the last time."""
        for model_id in self._engines:
            await self._share_of(model_id)

    async def _share_of(self, model_id: str) -> None:
        engine = self._engines[model_id]
        if not isinstance(engine, SharesDrafts):
            return
        owed = (taught for of, taught in self._owed.copy() if of == model_id)
        try:
            tokenizer = engine.info.tokenizer_hash  # ids of another would mean other tokens
            all_taught = dict.fromkeys((*engine.taught(), *owed))
        except EngineClosed:
            return
        except Exception:  # engines are plugins too: a fault of one costs its own lessons
            log.exception("drafts of %s are not shared", model_id)
            return
        for taught in all_taught:
            self._owed.add((model_id, taught))
            try:
                await self._exchange(model_id, tokenizer, engine, taught)
            except (StoreUnavailable, ValueTooLarge) as err:
                self._metrics.store_errors.labels("drafts").inc()
                log.warning("drafts of %s are not shared: %s", model_id, err)
            except EngineClosed:
                break
            except Exception:  # drafters are plugins: a fault of one costs its own lessons
                log.exception("drafts of %s by %r are not shared", model_id, taught.drafter)

    async def _exchange(
        self, model_id: str, tokenizer: str, engine: SharesDrafts, taught: Taught
    ) -> None:
        key, tenant = f"drafts/{model_id}/{tokenizer}/{taught.drafter}", taught.tenant
        blob = await self._store.get_blob(key, tenant=tenant)
        if blob is not None and self._read.get((model_id, taught)) != blob.version:
            try:
                await engine.merge_drafts(taught, blob.data)
            except (DrafterError, ValueError, TypeError, LookupError) as err:
                # Of an older bough, as drafters or plugins say it; ours takes its place.
                log.warning("stored drafts of %s cannot be read: %s", model_id, err)
        data = await engine.draft_snapshot(taught)
        wrote = await self._store.put_blob(
            key,
            data,
            tenant=tenant,
            if_version=blob.version if blob is not None else 0,
            ttl_s=self._settings.ttl_s,
        )
        if not isinstance(wrote, Conflict):  # else another replica was first: next time
            self._read[model_id, taught] = wrote
            self._owed.discard((model_id, taught))
