"""GET /v1/models: the models, and each again under every strategy that it can carry."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter

from search.errors import MissingRewardModel, PluginError
from server.catalog import SUFFIX, Catalog, Served
from server.services import Shared

router = APIRouter()


@router.get("/v1/models")
async def models(services: Shared) -> dict[str, Any]:
    """Models first, in the order of the settings; then ``model:strategy`` names."""
    catalog = services.catalog
    data = [_entry(catalog, served, None) for served in catalog.models.values()]
    for served in catalog.models.values():
        data += [_entry(catalog, served, strategy) for strategy in catalog.carried_by(served)]
    return {"object": "list", "data": data}


@router.get("/v1/models/{name:path}")
async def model(name: str, services: Shared) -> dict[str, Any]:
    """One model by its id or its ``model:strategy`` name."""
    served, strategy = services.catalog.find(name)
    return _entry(services.catalog, served, strategy)


def _entry(catalog: Catalog, served: Served, strategy: str | None) -> dict[str, Any]:
    info, judge = served.engine.info, served.settings.reward_model
    if strategy is not None:
        with suppress(MissingRewardModel, PluginError):  # requests must name one, or are refused
            judge = catalog.usual_judge(served, strategy)
    return {
        "id": served.model_id + (f"{SUFFIX}{strategy}" if strategy else ""),
        "object": "model",
        "created": served.created,
        "owned_by": "bough",
        "bough": {
            "task": served.settings.task,
            "strategy": strategy or served.settings.strategy,
            "reward_model": judge,
            "context_tokens": info.context_tokens,
            "parameters": info.parameters,
            "capabilities": sorted(info.capabilities),
        },
    }
