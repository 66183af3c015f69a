"""What every `Search` of one run shares: the engine, the judge, the tree and all claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from engines.base import ChatMessage, Engine, Sampling
from search.claims import ClaimBook
from search.growth import Grower
from search.judging import Judging
from search.streaming import Agreement
from search.tree import SearchTree

if TYPE_CHECKING:
    from stores.base import Store


@dataclass
class Workbench:
    """What every `Search` of one run shares."""

    engine: Engine
    tree: SearchTree
    claims: ClaimBook
    agreement: Agreement
    grower: Grower
    judging: Judging | None
    store: Store | None
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    seed: int
    answers: int
    further: Mapping[str, Judging] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)
    ignored: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    questions: count[int] = field(default_factory=count)
    tenant: str = ""
    store_errors: list[str] = field(default_factory=list)
    grown_before: int = 0
    reused_nfe: int = 0

    async def aclose(self) -> None:
        """Cancel what still grows and give every claim back."""
        try:
            await self.grower.aclose()
        finally:
            self.close_claims()

    def close_claims(self) -> None:
        """Give every claim back."""
        self.claims.close()
        if self.judging is not None:
            self.judging.close()
        for judging in self.further.values():
            judging.close()
