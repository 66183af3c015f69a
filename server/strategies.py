"""GET /v1/strategies: what a request may name, with each one's parameters as JSON Schema."""

from __future__ import annotations

import inspect
from typing import Any

from fastapi import APIRouter

from server.services import Shared

router = APIRouter()


@router.get("/v1/strategies")
async def strategies(services: Shared) -> dict[str, Any]:
    """Every strategy, by name, and the models here that carry it."""
    catalog = services.catalog
    known = catalog.usable()
    data = [
        {**describe(name, known[name]), "models": catalog.carriers_of(name)}
        for name in sorted(known)
    ]
    return {"object": "list", "data": data}


def describe(name: str, strategy: Any) -> dict[str, Any]:
    """One strategy as on the wire."""
    return {
        "name": name,
        "object": "strategy",
        "description": " ".join((inspect.getdoc(strategy) or "").split("\n\n")[0].split()),
        "params": strategy.Params.model_json_schema(),
        "requires": sorted(strategy.requires),
    }
