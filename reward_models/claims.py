"""The claim of a judge that has no cache."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import TokenIds


@dataclass(frozen=True)
class EmptyClaim:
    """Records tokens and holds nothing."""

    token_ids: TokenIds = ()

    def fork(self) -> EmptyClaim:
        """The same: there is nothing to share."""
        return self

    def extend(self, ids: TokenIds) -> EmptyClaim:
        """These tokens and `ids`."""
        return EmptyClaim(self.token_ids + tuple(ids))

    def release(self) -> None:
        """Nothing is held."""
