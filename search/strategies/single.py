"""One sample: what a plain completion does, and the floor that search is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engines.base import Capability
from search.base import Outcome, Params, Ranked
from search.search import Search


class SingleParams(Params):
    """None: everything is in the request's sampling."""


@dataclass(frozen=True)
class Single:
    """One sample from the model, streamed as it is drawn.

    A request for n answers draws n samples, the first of which comes first.
    """

    params: SingleParams
    name: ClassVar[str] = "single"
    Params: ClassVar[type[SingleParams]] = SingleParams
    requires: ClassVar[frozenset[Capability]] = frozenset()
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Draw what is not given; nothing chooses."""
        fresh = max(0, search.answers - len(search.given))
        samples = [*search.given, *await search.expand(search.root, fresh, last=True)]
        return search.outcome([Ranked(sample) for sample in samples])
