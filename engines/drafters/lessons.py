"""What most drafters have in common: nothing kept by run, and a step's outcome as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.drafters.base import NodeTops, TokenTree


@dataclass(frozen=True)
class Lesson:
    """The arguments of `Drafter.observe`."""

    tree: TokenTree
    emitted: Sequence[int]
    context: Sequence[int]
    tops: NodeTops | None
    run: str
    tenant: str


class Learner:
    """A drafter that learns in `learn`, and keeps nothing by run unless it says otherwise."""

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """Nothing is made of a prompt."""

    def observe(
        self,
        tree: TokenTree,
        emitted: Sequence[int],
        context: Sequence[int],
        tops: NodeTops | None = None,
        *,
        run: str,
        tenant: str,
    ) -> None:
        """See `Drafter.observe`."""
        self.learn(Lesson(tree, emitted, context, tops, run, tenant))

    def learn(self, lesson: Lesson) -> None:
        """Nothing is learnt."""

    def forget(self, run: str, *, tenant: str) -> None:
        """Nothing is kept by run."""
