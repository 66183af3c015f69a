"""How many pages those who run will probably still take, going by how much others drew."""

from __future__ import annotations

import math
from typing import Final

from engines.embedded.sequence import Branch, Sequence

_RECENT: Final = 0.05  # weight of the latest length in the running mean


class Outlook:
    """Learns how long steps and answers are. Before the first one ends nothing is expected.

    Args:
        page_tokens: Tokens in a page.
    """

    def __init__(self, page_tokens: int) -> None:
        self._size = page_tokens
        self._typical = {True: 0.0, False: 0.0}  # tokens drawn by a step, by a whole answer

    def learn(self, branch: Branch) -> None:
        """Take note of a branch that has ended."""
        drawn = len(branch.tokens) - branch.start
        mean = self._typical[branch.is_step]
        self._typical[branch.is_step] = mean + _RECENT * (drawn - mean) if mean else drawn

    def pages_to_come(self, sequence: Sequence) -> int:
        """Pages beyond those of the tokens that it has."""
        if not isinstance(sequence, Branch):
            return 0
        have = len(sequence.tokens)
        more = min(sequence.limit - have, self._typical[sequence.is_step] - have + sequence.start)
        pages = math.ceil((have + max(0.0, more)) / self._size)
        held = len(sequence.nodes) + len(sequence.own)
        return max(0, pages - max(held, math.ceil(have / self._size)))
