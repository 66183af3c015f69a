"""One step that verifies drafted trees: which rows run where, and which slots stay.

Every branch of the batch has its last token and, behind it, the nodes of its tree, if any. Their
keys lie in consecutive slots of pages that are the branch's own, in the order of the nodes, at the
positions of their depths; a node sees what came before the tree, its ancestors and itself. What is
accepted is then moved together; the rest is overwritten by the next step, and its pages go back
with the branch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.base import TokenIds, TopLogps
from engines.drafters.base import NodeTops, TokenTree
from engines.drafters.verify import Walk, walk
from engines.embedded.attention import Row
from engines.embedded.sample import Draw, NodeDraw, Nodes
from engines.embedded.sequence import Branch


class Verification:
    """The rows of one step, in the order of the branches.

    Args:
        branches: Of the batch, each with one pending token.
        trees: One per branch; there is room for each behind its branch's computed tokens.
        page_tokens: Tokens in a page.
    """

    def __init__(
        self, branches: Sequence[Branch], trees: Sequence[TokenTree], page_tokens: int
    ) -> None:
        self.branches = branches
        self.trees = trees
        self.rows: list[Row] = []
        tokens: list[int] = []
        depths: list[int] = []
        slots: list[int] = []
        owners: list[int] = []
        starts: list[int] = []
        self._firsts: list[int] = []  # row of every branch's last token
        for number, (branch, tree) in enumerate(zip(branches, trees, strict=True)):
            start, count = branch.computed, 1 + len(tree)
            seen = tree.mask() if len(tree) > 1 else None
            self.rows.append(Row(branch.shared_pages, branch.own, start, count, seen))
            self._firsts.append(len(tokens))
            tokens += [branch.tokens[-1], *tree.tokens]
            depths += [0, *tree.depths]
            owners += [number] * count
            starts += [start] * count
            slots += [
                branch.page_at(p, page_tokens) * page_tokens + p % page_tokens
                for p in range(start, start + count)
            ]
        self.tokens = np.array(tokens)
        self.slots = np.array(slots)
        of_depth = np.array(depths)
        self.positions = np.array(starts) + of_depth
        self.nodes = Nodes(np.array(owners), of_depth, self._path)

    def _path(self, row: int) -> TokenIds:
        number = int(self.nodes.rows[row])
        return self.trees[number].path(row - self._firsts[number] - 1)

    def walks(self, draw: Draw) -> list[Walk]:
        """What each branch says, given a draw after every row."""
        return [
            walk(tree, lambda node, first=first: draw.ids[first + 1 + node])  # type: ignore[misc]
            for tree, first in zip(self.trees, self._firsts, strict=True)
        ]

    def logps(self, draw: Draw, number: int, accepted: Walk) -> list[float]:
        """Log-probability of each token that branch `number` says, nats."""
        return [draw.logps[row] for row in self._said(number, accepted)]

    def tops(self, draw: Draw, number: int, accepted: Walk) -> list[TopLogps]:
        """Alternatives to each token that branch `number` says; none where none were asked for."""
        tops = draw.tops
        return [] if tops is None else [tops[row] for row in self._said(number, accepted)]

    def _said(self, number: int, accepted: Walk) -> list[int]:
        """Rows after which branch `number` said something: its last token's, accepted nodes'."""
        first = self._firsts[number]
        return [first, *(first + 1 + node for node in accepted.nodes)]

    def moves(self, walks: Sequence[Walk]) -> tuple[list[int], list[int]]:
        """Slots to copy, from and to, so that what was accepted follows what was computed."""
        sources: list[int] = []
        destinations: list[int] = []
        for first, accepted in zip(self._firsts, walks, strict=True):
            for at, node in enumerate(accepted.nodes):
                if node != at:
                    sources.append(int(self.slots[first + 1 + node]))
                    destinations.append(int(self.slots[first + 1 + at]))
        return sources, destinations

    def lessons(self, number: int, draw: NodeDraw) -> NodeTops:
        """The likeliest tokens after branch `number`'s rows."""
        first = self._firsts[number]
        end = first + 1 + len(self.trees[number])
        return NodeTops(draw.top_ids[first:end], draw.top_probs[first:end])
