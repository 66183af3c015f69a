"""Adaptive draft verification as published: the yardstick. Greedy requests only.

Source: liuxukun2000/Adaptix, the code of Liu et al. 2024 (arXiv 2407.12021): a shared table of
trigram weights, +0.04 up to 3.0 for each of the last 14 trigrams at every step, MCTS.
Differs: the table is per tenant and bounded (rows least recently written go first; 4,096 weights
a row); the guess where nothing is known stays inside the vocabulary. Its acceptance of samples is
not lossless (`verify.published_walk`); any drafter's trees are lossless under `verify.walk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from engines.base import TokenIds
from engines.drafters.base import EMPTY, ROOT, DrafterStats, Shape, TokenTree
from engines.drafters.foreign import reading
from engines.drafters.lessons import Learner, Lesson
from engines.drafters.mcts import Pair, Row, cut, drafted_paths
from engines.drafters.opening import build, pack, unpack
from engines.drafters.rows import Frozen, Rows, pair, read_rows
from engines.drafters.runs import Recent

_KIND: Final = "reference_aded/1"
STEP: Final = 0.04
CAP: Final = 3.0
WINDOW: Final = 16
CHOICES: Final = 64
_ROW_CAP: Final = 4096
_GUESS: Final = 100


class ReferenceAded(Learner):
    """The published table and search, one table per tenant."""

    shape: Shape = "tree"
    reach: int | None = WINDOW
    num_tops = 0

    def __init__(
        self,
        vocab_size: int,
        max_rows: int = 200_000,
        max_tenants: int = 16,
        base: Frozen | None = None,
    ) -> None:
        self._guess = min(_GUESS, vocab_size - 1)
        self._max_entries = max_rows * max_tenants
        self._tenants: Recent[str, Rows] = Recent(
            max_tenants, lambda: Rows(max_rows, _ROW_CAP, base)
        )

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """The prompt's last tokens enter the table, as before the published first draft."""
        self._enter(prompt, tenant)

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """Paths of the search, merged, level by level; at most 64 nodes."""
        if budget_nodes < 1 or not context:
            return EMPTY
        rows = self._tenants[tenant]

        def row(key: Pair) -> Mapping[int, float] | None:
            return rows.get(pair(*key))

        paths: list[TokenIds] = []
        if len(context) > 1:
            root = (context[-2], context[-1])
            paths = cut(drafted_paths(root, row, Random(pair(*root))), CHOICES)
        return _merge(paths or [(self._guess,)], context, row, min(budget_nodes, CHOICES))

    def learn(self, lesson: Lesson) -> None:
        """The update that the published code makes before its next draft."""
        self._enter((*lesson.context[-WINDOW:], *lesson.emitted), lesson.tenant)

    def _enter(self, text: Sequence[int], tenant: str) -> None:
        rows = self._tenants[tenant]
        last = text[max(0, len(text) - WINDOW) :]
        for first, second, third in zip(last, last[1:], last[2:], strict=False):
            rows.add(pair(first, second), third, STEP, CAP)

    def snapshot(self, *, tenant: str) -> bytes:
        """The tenant's rows."""
        return pack(_KIND, {"rows": self._tenants[tenant].dump()})

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Take over rows that are not known here."""
        found = unpack(_KIND, data, "rows")
        with reading(_KIND):
            rows = read_rows(found["rows"])
        self._tenants[tenant].load(rows)

    def stats(self) -> DrafterStats:
        """Rows of all tenants."""
        entries = sum(len(rows) for rows in self._tenants.values())
        return DrafterStats(0, len(self._tenants), entries, self._max_entries)


def _merge(paths: Sequence[TokenIds], context: Sequence[int], row: Row, most: int) -> TokenTree:
    """A trie of the paths by depth, siblings as they first came; the published order."""
    prefixes = dict.fromkeys(path[:end] for path in paths for end in range(1, len(path) + 1))
    order = sorted(prefixes, key=len)[:most]
    node_of: dict[TokenIds, int] = {(): ROOT}
    logps: list[float] = []
    for node, path in enumerate(order):
        above = node_of[path[:-1]]
        text = (*context[-2:], *path[:-1])
        weights = (row((text[-2], text[-1])) if len(text) > 1 else None) or {}
        share = weights.get(path[-1], 0.0) / (sum(weights.values()) or 1.0)
        logps.append((logps[above] if above != ROOT else 0.0) + math.log(max(share, 1e-9)))
        node_of[path] = node
    parents = tuple(node_of[path[:-1]] for path in order)
    return TokenTree(tuple(path[-1] for path in order), parents, tuple(logps))


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> ReferenceAded:
    """Options: max_rows, max_tenants, and `table`, the path of a saved one."""
    return build(ReferenceAded, vocab_size, options)
