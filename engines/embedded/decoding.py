"""What a plain decode step keeps from step to step, and which branches share its rows.

Children of one branch often begin alike: a sure model gives most of them the same next token. Such
*twins* hold the same tokens, so one row computes for all of them: its keys and values are written
to every twin's pages, and each twin draws for itself from its logits. Twins part as soon as they
draw different tokens. Pages are not shared by this, and nobody's draws change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engines.embedded.attention import Planner, Row
from engines.embedded.sample import Sampler
from engines.embedded.sequence import Branch


class DecodeBatch:
    """Branches that draw one token a step, with everything that survives from step to step.

    Args:
        branches: B of them in batch order, each with one pending token and a page for it.
        sampler: For the same branches.
        planner: Of the pool.
        page_tokens: Tokens in a page.
        device: The decoder's.

    Attributes:
        tokens: (R,) int64, the pending token of every row; R is B less the twins.
        positions: (R,) int64, their positions.
        slots: (B,) int64, where each branch keeps its keys and values.
        row_of: (B,) int64, the row that computes for each branch; None when each has its own.
        plan: Of the rows.
    """

    def __init__(
        self,
        branches: list[Branch],
        sampler: Sampler,
        planner: Planner,
        page_tokens: int,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self._rows = rows_of(branches, page_tokens)
        self._heads = np.unique(self._rows, return_index=True)[1]
        heads = [branches[at] for at in self._heads]
        self.row_of: torch.Tensor | None = None
        if len(heads) < len(branches):
            self.row_of = torch.from_numpy(self._rows).to(device)
        self.plan = planner.plan([Row(b.shared_pages, b.own, b.computed, 1) for b in heads])
        self.tokens = np.array([branch.tokens[-1] for branch in heads])
        self.positions = np.array([branch.computed for branch in heads])
        at = self.positions[self._rows]
        pages = [b.page_at(p, page_tokens) for b, p in zip(branches, at.tolist(), strict=True)]
        self.slots = np.array(pages) * page_tokens + at % page_tokens
        self._steps_left = page_tokens - int((self.positions % page_tokens).max())

    @property
    def is_stale(self) -> bool:
        """Whether a branch needs its next page, or twins have parted."""
        return self._steps_left == 0

    def advance(self, ids: Sequence[int]) -> None:
        """Move on by the drawn `ids`, one for each branch."""
        drawn = np.array(ids)
        self._steps_left -= 1
        if (drawn[self._heads][self._rows] != drawn).any():
            self._steps_left = 0
        if not self.is_stale:
            self.tokens = drawn[self._heads]
            self.positions += 1
            self.slots += 1
            self.plan.advance()


def rows_of(branches: Sequence[Branch], page_tokens: int) -> npt.NDArray[np.int64]:
    """The row of each branch, (B,) int64: the same number for twins, numbered by first member.

    Twins belong to one tenant and have the same tokens behind the same pages of the trie. Of two
    that began at different lengths only the tokens are the same: they are not found, which costs a
    row and nothing else.
    """
    numbers: dict[tuple[str, int], list[tuple[int, Branch]]] = {}
    found = np.empty(len(branches), np.int64)
    count = 0
    for at, branch in enumerate(branches):
        known = numbers.setdefault((branch.tenant, branch.key), [])
        twin = next((row for row, one in known if _are_twins(one, branch, page_tokens)), None)
        if twin is None:
            known.append((count, branch))
            twin, count = count, count + 1
        found[at] = twin
    return found


def _are_twins(one: Branch, other: Branch, page_tokens: int) -> bool:
    """Whether their tokens are equal; full pages of the trie that are the same need no look."""
    start = page_tokens * len(one.shared_pages)
    return (
        one.computed == other.computed
        and one.shared_pages == other.shared_pages
        and one.tokens[start:] == other.tokens[start:]
    )
