"""Writing a blob that others write too: over the version that was read, else merged with theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stores.base import Conflict, Store

MAX_ATTEMPTS: Final = 5
"""Times that others may come first before the write is given up."""


async def merge_blob(
    store: Store,
    key: str,
    data: bytes,
    *,
    tenant: str,
    version: int,
    merged: Callable[[bytes], bytes],
    ttl_s: float | None = None,
) -> bool:
    """Write a blob that grew from the one at `version`; somebody else's growth is not lost.

    Args:
        store: Where.
        key: Its name.
        data: All of it.
        tenant: Whose it is.
        version: What it grew from; 0 when there was none.
        merged: Gives the blob for what is there by now.
        ttl_s: Its lifetime from now on.

    Returns:
        Whether it was written; not if others were faster time and again.

    Raises:
        StoreUnavailable: The store does not answer.
        ValueTooLarge: Over the store's bound.
    """
    for _ in range(MAX_ATTEMPTS):
        written = await store.put_blob(key, data, tenant=tenant, if_version=version, ttl_s=ttl_s)
        if not isinstance(written, Conflict):
            return True
        theirs = await store.get_blob(key, tenant=tenant)
        version = 0 if theirs is None else theirs.version
        data = data if theirs is None else merged(theirs.data)
    return False
