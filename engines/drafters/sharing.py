"""What replicas exchange so that their drafters learn from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Taught:
    """Whose drafts were learnt from.

    Attributes:
        drafter: Its name.
        tenant: Whose requests taught it.
    """

    drafter: str
    tenant: str


@runtime_checkable
class SharesDrafts(Protocol):
    """An engine whose drafters can learn from those of its replicas."""

    def taught(self) -> list[Taught]:
        """What was learnt since the last `draft_snapshot` of it."""

    async def draft_snapshot(self, of: Taught) -> bytes:
        """What a tenant taught a drafter, bounded; waits until the engine is idle."""

    async def merge_drafts(self, of: Taught, data: bytes) -> None:
        """Learn a replica's snapshot; waits until the engine is idle.

        Raises:
            DrafterError: Not a snapshot of this drafter.
            EngineError: The engine is closed or failed.
        """
