"""Token Recycling: the target's last top-8 after each token, laid into a fixed tree.

Source: Luo et al. 2024 (arXiv 2408.08696), template 2.2.2 of the authors' code: 80 nodes in six
levels. Differs: rows exist only for tokens that were seen (the published matrix starts as zeros and
so guesses token 0 everywhere); where a token stands at several nodes, the last node's row stays;
rows are per tenant; a smaller budget keeps the nodes with the best ranks; a token drafted twice
under one parent is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from engines.drafters.base import ROOT, DrafterStats, Shape, TokenTree
from engines.drafters.foreign import reading
from engines.drafters.lessons import Learner, Lesson
from engines.drafters.opening import build, pack, unpack
from engines.drafters.rows import Rows, read_rows, single
from engines.drafters.runs import Recent

_KIND: Final = "token_recycling/1"
_TOPS: Final = 8
_WIDTHS: Final[Mapping[str, int]] = {
    **{"": 8, "0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1},
    **{"00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1},
    **{"10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1},
    **{"000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1},
    **{"100": 1, "200": 1, "300": 1, "0000": 3, "0001": 1, "0002": 1, "0010": 1},
    **{"0100": 1, "1000": 1, "00000": 2, "00010": 1},
}
"""How many of its top tokens a node of the template gets, by the ranks on the way to it."""


def _template() -> tuple[str, ...]:
    """The nodes as ranks on their paths: fewest ranks lost first, parents before children."""
    paths = [f"{path}{rank}" for path, width in _WIDTHS.items() for rank in range(width)]
    return tuple(sorted(paths, key=lambda path: (sum(int(r) + 1 for r in path), len(path), path)))


TEMPLATE: Final = _template()


class TokenRecycling(Learner):
    """One row of eight likely successors per token."""

    shape: Shape = "tree"
    reach: int | None = 1
    num_tops = _TOPS

    def __init__(self, max_rows: int = 65_536, max_tenants: int = 64) -> None:
        self._max_entries = max_rows * max_tenants
        self._tenants: Recent[str, Rows] = Recent(max_tenants, lambda: Rows(max_rows, _TOPS))

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """The template, filled as far as rows are known."""
        tokens: list[int] = []
        parents: list[int] = []
        logps: list[float] = []
        rows = self._tenants.peek(tenant)
        if rows is None or not context:
            return TokenTree()
        node_of = {"": ROOT}
        taken: set[tuple[int, int]] = set()
        for path in TEMPLATE:
            if len(tokens) >= budget_nodes:
                break
            parent = node_of.get(path[:-1])
            if parent is None:
                continue
            row = rows.get(single(context[-1] if parent == ROOT else tokens[parent]))
            token = _ranked(row, int(path[-1]))
            if token is None or (parent, token) in taken or row is None:
                continue
            above = 0.0 if parent == ROOT else logps[parent]
            taken.add((parent, token))
            node_of[path] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            logps.append(above + math.log(min(1.0, max(row[token], 1e-9))))
        return TokenTree(tuple(tokens), tuple(parents), tuple(logps))

    def learn(self, lesson: Lesson) -> None:
        """Overwrite the rows of the root and of every node.

        Without `tops`, a token never seen before gets the one that followed: else there would
        never be a draft to be verified.
        """
        tops = lesson.tops
        if not lesson.context:
            return
        rows = self._tenants[lesson.tenant]
        if tops is None:
            for token, following in pairwise((lesson.context[-1], *lesson.emitted)):
                if rows.get(single(token)) is None:
                    rows.put(single(token), {following: 1.0})
            return
        nodes = (lesson.context[-1], *lesson.tree.tokens)
        for token, ids, probs in zip(nodes, tops.ids, tops.probs, strict=True):
            rows.put(single(token), dict(zip(ids, probs, strict=True)))

    def snapshot(self, *, tenant: str) -> bytes:
        """The tenant's rows."""
        rows = self._tenants.peek(tenant)
        return pack(_KIND, {"rows": rows.dump() if rows else []})

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


def _ranked(row: Mapping[int, float] | None, rank: int) -> int | None:
    """The token at a place of a row, which `put` keeps in falling order."""
    return None if row is None or rank >= len(row) else list(row)[rank]


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> TokenRecycling:
    """Options: max_rows, max_tenants."""
    return build(TokenRecycling, vocab_size, options)
