"""What the routes of one app share: made at start, closed at the end, never a global."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from server.admission import Admission
from server.cache import ResponseCache
from server.catalog import Catalog, open_store, opened
from server.draft_sharing import sharing_drafts
from server.metrics import Gauges, Metrics
from server.record import LiveRuns
from server.settings import Settings
from stores.base import Store


@dataclass
class Services:
    """Everything a route may need."""

    settings: Settings
    catalog: Catalog
    store: Store
    admission: Admission
    metrics: Metrics
    cache: ResponseCache
    runs: LiveRuns


async def _of(request: Request) -> Services:  # a plain function would be called in a thread
    services: Services = request.app.state.services
    return services


Shared = Annotated[Services, Depends(_of)]
"""A route's parameter of this type is the app's services."""


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Services]:
    """Open the store, the engines and the judges; close them in the opposite order.

    Raises:
        SettingsError: A setting that no plugin fits.
        StoreConfigError: A store that cannot be opened.
        ModelLoadError: A model that cannot be served.
        RewardLoadError: A reward model that cannot be served.
    """
    metrics = Metrics()
    limits = settings.limits
    admission = Admission(limits.max_concurrent_runs, limits.max_queued_runs)
    store = open_store(settings)
    try:
        async with opened(settings) as catalog:
            metrics.registry.register(
                Gauges(
                    catalog.stats,
                    lambda: {"running": admission.running, "waiting": admission.waiting},
                )
            )
            cache = ResponseCache(store, metrics, settings.cache)
            runs = LiveRuns(store, metrics)
            async with sharing_drafts(settings, catalog, store, metrics):
                yield Services(settings, catalog, store, admission, metrics, cache, runs)
                admission.close()
                await runs.drain()
    finally:
        await store.aclose()
