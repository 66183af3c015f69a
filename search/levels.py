"""What tree searches over steps do at every level: draw, judge, see what has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from search.answers import ANSWER_PHRASES
from search.branch import Branch
from search.search import Search


class Levels:
    """The steps of one run, drawn and judged level by level. Made by `begin`.

    Attributes:
        ended: Judged branches that have ended, by themselves or by a limit; those that were given
            come first.
    """

    def __init__(self, search: Search, max_step_tokens: int | None) -> None:
        self._search = search
        self._how = search.stepwise(max_step_tokens)
        self.ended: list[Branch] = []

    @classmethod
    async def begin(cls, search: Search, max_step_tokens: int | None) -> Self:
        """Judge what the run was given: finished branches that are candidates already."""
        levels = cls(search, max_step_tokens)
        await levels._take(search.given)
        return levels

    async def grow(self, counts: Iterable[tuple[Branch, int]]) -> list[Branch]:
        """The next steps of these branches, which get no others, in order of submission.

        All are returned that were drawn, also those that nobody could judge; none at all when the
        budget or the time is used up.
        """
        children = await self._search.expand_all(
            counts, self._how, last=True, closed_by=ANSWER_PHRASES
        )
        await self._take(children)
        return children

    def still_open(self, children: Sequence[Branch]) -> list[Branch]:
        """Those that have a value and can be continued."""
        return [one for one in self._search.usable(children) if one.finish is None]

    async def _take(self, branches: Sequence[Branch]) -> None:
        await self._search.score(branches)
        self.ended += [one for one in self._search.usable(branches) if one.finish is not None]
