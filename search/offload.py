"""Computing beside the event loop, which must not stand still: every stream is served by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

FEW_BRANCHES: Final = 8
"""Clusters and integer programs of so few take about as long as handing them to a thread."""


async def beside_the_loop(
    is_quick: bool, compute: Callable[P, T], *args: P.args, **options: P.kwargs
) -> T:
    """What a pure function gives, computed in a thread unless it `is_quick`."""
    if is_quick:
        return compute(*args, **options)
    return await asyncio.to_thread(compute, *args, **options)
