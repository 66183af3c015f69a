"""Drafts on the echo engine: what an engine does with a drafter, without a model to save.

Every node that is visited is drawn by `EchoChild.step`, so a draft cannot change what is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engines.base import TokenIds
from engines.drafters.base import ROOT, Drafter
from engines.echo_child import EchoChild
from engines.echo_model import Logits

NODES: Final = 8
"""Drafted tokens verified in a turn of a child."""


class EchoDrafts:
    """One request's drafter and the runs it has begun.

    Args:
        drafter: Who guesses.
        run: Name of the request.
        tenant: Whose it is.
    """

    def __init__(self, drafter: Drafter, run: str, tenant: str) -> None:
        self._drafter = drafter
        self._run = run
        self._tenant = tenant

    def begin(self, prompt: TokenIds) -> None:
        """Show the drafter the prompt of a new request."""
        self._drafter.begin(self._run, prompt, tenant=self._tenant)

    def turn(self, child: EchoChild, logits: Callable[[TokenIds], Logits]) -> int:
        """Tokens up to the first that was not drafted; how many."""
        context = child.claim.token_ids
        tree = self._drafter.propose(context, NODES, run=self._run, tenant=self._tenant)
        child.drafted += len(tree)
        emitted: list[int] = []
        node: int | None = ROOT
        while node is not None and not child.is_done:
            emitted.append(child.step(logits(child.claim.token_ids)))
            node = tree.children.get((node, emitted[-1]))
            child.accepted += node is not None
        self._drafter.observe(tree, emitted, context, run=self._run, tenant=self._tenant)
        return len(emitted)
