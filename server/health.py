"""Whether the process lives, and whether it can answer.

An engine that is dead for good makes both fail: the process answers, but only a restart brings the
engine back, and liveness is what process managers restart by. An upstream that is merely away, and
a judge that is gone, make the process unready and no more.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from engines.base import Health
from reward_models.base import KnowsHealth
from server.services import Services, Shared
from stores.errors import StoreUnavailable

router = APIRouter()


# Balancers probe with either method; the schema names one.
@router.head("/health", include_in_schema=False)
@router.head("/health/live", include_in_schema=False)
@router.get("/health")
@router.get("/health/live")
async def live(services: Shared) -> JSONResponse:
    """The process answers, and no engine of it is dead."""
    dead = _models(services, Health.DEAD)
    body = {"status": "unavailable" if dead else "ok", "dead": dead}
    return JSONResponse(body, status_code=503 if dead else 200)


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready")
async def ready(services: Shared) -> JSONResponse:
    """Every model can answer. A store that is down degrades, but does not make unready."""
    gone = sorted(_judges(services).union(_models(services, Health.DEAD, Health.AWAY)))
    body: dict[str, Any] = {
        "status": "unavailable" if gone else "ok",
        "models": list(services.catalog.models),
        "gone": gone,
        "store": await _store_state(services),
    }
    return JSONResponse(body, status_code=503 if gone else 200)


def _models(services: Services, *states: Health) -> list[str]:
    models = services.catalog.models.items()
    return sorted(name for name, served in models if served.engine.health in states)


def _judges(services: Services) -> set[str]:
    """Those that say that they are gone, or said so when they were needed."""
    catalog = services.catalog
    return {
        name
        for name, judge in catalog.judges.items()
        if (
            judge.health is not Health.READY
            if isinstance(judge, KnowsHealth)
            else name in catalog.gone
        )
    }


async def _store_state(services: Shared) -> str:
    try:
        await services.store.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"
