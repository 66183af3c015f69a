"""The seam between an engine and whatever guesses its next tokens.

A drafter proposes a chain or a tree of tokens after a context; the engine verifies them in one
step (`engines.drafters.verify`) and tells the drafter what came out. Nothing here knows tensors.
One drafter serves all branches of all runs of one model. It is called by one thread at a time.

A *run* is one request: its branches share what they learn. A *tenant* owns its runs and everything
learnt in them; no other tenant's proposals depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engines.base import TokenIds

Shape = Literal["chain", "tree"]
ROOT: Final = -1
"""The parent of a tree's first level: the context's last token, which is not computed yet."""


@dataclass(frozen=True)
class TokenTree:
    """Drafted tokens; a parent always comes before its children.

    Attributes:
        tokens: One per node; siblings differ.
        parents: Index of each node's parent, ROOT for the first level.
        logps: The drafter's log-probability of the path to each node, in nats, not above 0.
    """

    tokens: TokenIds = ()
    parents: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance from the root token, 1 for the first level."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 if parent == ROOT else found[parent] + 1)
        return tuple(found)

    @cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """The node that follows (parent, token)."""
        return {
            (parent, token): node
            for node, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True))
        }

    def path(self, node: int) -> TokenIds:
        """Tokens from the first level to `node`; empty for ROOT."""
        found: list[int] = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(found))

    def cut(self, num_nodes: int) -> TokenTree:
        """The first `num_nodes` nodes; a whole tree again, since parents come first."""
        if num_nodes >= len(self):
            return self
        return TokenTree(self.tokens[:num_nodes], self.parents[:num_nodes], self.logps[:num_nodes])

    def mask(self) -> npt.NDArray[np.bool_]:
        """Who sees whom, (nodes + 1, nodes + 1); row and column 0 are the root token."""
        seen = np.eye(len(self) + 1, dtype=np.bool_)
        seen[0, 0] = True
        for node, parent in enumerate(self.parents):
            seen[node + 1] |= seen[parent + 1]
        return seen


EMPTY: Final = TokenTree()


def chain(tokens: Sequence[int], logps: Sequence[float]) -> TokenTree:
    """A tree without forks; `logps` are those of the paths."""
    return TokenTree(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(logps))


@dataclass(frozen=True)
class NodeTops:
    """The target's likeliest next tokens after the root (row 0) and after node i (row i + 1).

    Attributes:
        ids: Token ids by row, likeliest first.
        probs: Their probabilities, at the request's temperature (at 1 when it is greedy).
    """

    ids: Sequence[Sequence[int]]
    probs: Sequence[Sequence[float]]


@dataclass(frozen=True)
class DrafterStats:
    """How full a drafter is.

    Attributes:
        runs: Runs that it remembers.
        tenants: Tenants that it remembers.
        entries: Rows and nodes held now, over all runs and tenants.
        max_entries: What `entries` never exceeds.
    """

    runs: int
    tenants: int
    entries: int
    max_entries: int


@runtime_checkable
class Drafter(Protocol):
    """Guesses. See `engines.drafters.conformance` for its laws."""

    @property
    def shape(self) -> Shape:
        """Whether trees may fork."""

    @property
    def reach(self) -> int | None:
        """How many last tokens of a context are read; a caller may pass no more. None: all."""

    @property
    def num_tops(self) -> int:
        """How many alternatives of each verified node it learns from; 0: pass none."""

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """A new request; its prompt may be learnt from. Optional: runs begin by themselves."""

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """At most `budget_nodes` tokens that may follow `context`; EMPTY where nothing is known.

        Depends on what was observed, never on draws to come. Changes nothing that is learnt.
        """

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
        """A step is done: `emitted` (accepted drafts and the next token) follow `context`.

        Also for steps without a draft (EMPTY), so that they are learnt from. `tops` has a row for
        the root and each node of `tree`, rejected ones included.
        """

    def forget(self, run: str, *, tenant: str) -> None:
        """The request is over; idempotent. Runs that nobody forgets are evicted, oldest first."""

    def snapshot(self, *, tenant: str) -> bytes:
        """What this tenant's runs taught, bounded, to be shared with other replicas."""

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Learn another replica's snapshot of the same tenant.

        Raises:
            DrafterError: Not a snapshot of this kind of drafter.
        """

    def stats(self) -> DrafterStats:
        """How full it is."""
