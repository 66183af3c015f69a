"""The part of `Search` that denoises: chains, jobs and stored branches."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from engines.base import Sampling
from engines.diffusion.base import DenoiseJob
from search.branch import Branch, Slot, Step
from search.budget import Budget
from search.chains import Chain, Restored, chain_of
from search.denoising import denoise, restored_step
from search.tree import SearchTree
from search.workbench import Workbench

_AT_A_TIME: Final = 32
"""Nodes that are restored before other work has its turn."""


class Denoises(ABC):
    """What a strategy may use of a denoising engine; `Search` is the only one.

    Attributes:
        root: The prompt.
        tree: Everything grown so far.
        budget: What may still be spent.
        sampling: The request's.
    """

    root: Branch
    tree: SearchTree
    budget: Budget
    sampling: Sampling
    _bench: Workbench

    def chain(self, **kernel: Any) -> Chain:
        """The reverse chain of this request, as `Engine.sample` follows it.

        Args:
            kernel: Fields of `engines.diffusion.base.Kernel` to replace; None leaves one as it is.

        Raises:
            UnsupportedByEngine: The engine does not denoise.
            DenoiseError: The chain cannot be, or nothing in it is random.
        """
        prompt = self._bench.claims.claim(self.root).token_ids
        return chain_of(self._bench.engine, prompt, self.sampling, kernel)

    async def denoise(self, jobs: Sequence[tuple[Branch, DenoiseJob]]) -> list[Branch]:
        """Denoise each branch by its job, all as one batch: one child each, in the jobs' order.

        Fewer children come back when the budget is used up, none when the time is. The seeds are
        the search's: a branch's first child goes on with its random stream, others have their own.

        Raises:
            EngineError: What the denoiser raised.
        """
        landed = await denoise(self._bench, jobs, self.budget)
        return [self._add(slot, step) for slot, step in landed]

    async def restore(
        self, nodes: Sequence[Restored], chain: Chain, *, nfe: int, rollouts: int
    ) -> list[Branch]:
        """Put stored nodes, parents first, into the tree; nothing is spent.

        Other work goes on between them.

        Args:
            nodes: What was stored.
            chain: The chain that they are states of.
            nfe: What they once cost.
            rollouts: How many grew that tree so far, at least 1. New seeds are kept apart by this:
                it rises with every growth, while the nodes of a full tree stay as many.
        """
        branches: list[Branch] = []
        for at, node in enumerate(nodes):
            if at % _AT_A_TIME == 0:
                await asyncio.sleep(0)
            parent = self.root if node.parent is None else branches[node.parent]
            step = restored_step(self._bench, chain, parent, node)
            branches.append(self._add(self.tree.submit(parent), step))
            if node.value is not None:
                self.keep_value(branches[-1], node.value)
        self._bench.grown_before = max(self._bench.grown_before, rollouts)
        self._bench.reused_nfe += nfe
        return branches

    def _add(self, slot: Slot, step: Step) -> Branch:
        """A branch that nobody streams."""
        branch = self.tree.add(slot, step)
        for members in self._circles():
            members.add(branch.id)
        self._bench.agreement.add(branch)
        return branch

    @abstractmethod
    def keep_value(self, branch: Branch, value: float) -> None:
        """This is the branch's value."""

    @abstractmethod
    def _circles(self) -> tuple[set[int], ...]:
        """Who is told of every new branch."""
