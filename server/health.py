"""Whether the process lives, and whether it can answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.services import Shared
from stores.errors import StoreUnavailable

router = APIRouter()


# Balancers probe with either method; the schema names one.
@router.head("/health", include_in_schema=False)
@router.head("/health/live", include_in_schema=False)
@router.get("/health")
@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready")
async def ready(services: Shared) -> JSONResponse:
    """Every model can answer. A store that is down degrades, but does not make unready."""
    gone = sorted(services.catalog.gone)
    body: dict[str, Any] = {
        "status": "unavailable" if gone else "ok",
        "models": list(services.catalog.models),
        "gone": gone,
        "store": await _store_state(services),
    }
    return JSONResponse(body, status_code=503 if gone else 200)


async def _store_state(services: Shared) -> str:
    try:
        await services.store.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"
