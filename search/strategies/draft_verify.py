"""One sample with a drafter: the answer of `single`, in fewer steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params, Ranked
from search.search import Search


class DraftVerifyParams(Params):
    """Who guesses."""

    drafter: str = Field(
        "adaptive", min_length=1, description="the drafter, where bough.drafter names none"
    )


@dataclass(frozen=True)
class DraftVerify:
    """One sample from the model, of which a drafter guesses the next tokens; the same as `single`.

    Source: Liu et al. 2024, "Adaptive Draft-Verification", arXiv 2407.12021.
    Differs: exact when sampling too, and best-first trees (`engines.drafters`).
    """

    params: DraftVerifyParams
    name: ClassVar[str] = "draft_verify"
    Params: ClassVar[type[DraftVerifyParams]] = DraftVerifyParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.DRAFTER})
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Draw what is not given; nothing chooses."""
        how = search.sampling
        if how.drafter is None:
            how = replace(how, drafter=self.params.drafter)
        fresh = max(0, search.answers - len(search.given))
        samples = [*search.given, *await search.expand(search.root, fresh, how, last=True)]
        return search.outcome([Ranked(sample) for sample in samples])
