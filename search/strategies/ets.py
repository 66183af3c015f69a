"""Efficient tree search: REBASE over a frontier pruned by an integer program."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from engines.base import Capability
from search.branch import Branch
from search.cover import KeepProblem, clusters_of, node_shares, solve
from search.embedders import has_minilm, minilm, tfidf_beside_the_loop
from search.errors import BudgetExhausted, InvalidParameter
from search.offload import FEW_BRANCHES, beside_the_loop
from search.search import Search
from search.select import rebase_counts
from search.strategies.rebase import Rebase, RebaseParams
from search.tree import Selected


class EtsParams(RebaseParams):
    """Parameters of `ets`."""

    lambda_b: float = Field(
        default=1.0, ge=0, le=1000, description="Price of the tree's nodes; larger keeps fewer."
    )
    lambda_d: float = Field(
        default=1.5, ge=0, le=1000, description="Reward for covering every semantic cluster."
    )
    cluster_distance: float = Field(
        default=0.05, gt=0, lt=2, description="Cosine distance at which clusters are cut."
    )
    embedder: Literal["hidden", "tfidf", "minilm"] = Field(
        default="hidden",
        description="What tells clusters apart: the generator's hidden states (TF-IDF where it has "
        "none), TF-IDF of the step's text, or MiniLM.",
    )
    node_cost: Literal["uniform", "tokens"] = Field(
        default="uniform",
        description="What a node costs: all the same, as published, or in proportion to its "
        "tokens; the prompt is free then.",
    )
    coverage: bool = Field(
        default=False,
        description="Give every kept branch one continuation before the rest is shared out.",
    )

    @field_validator("embedder")
    @classmethod
    def _is_installed(cls, embedder: str) -> str:
        if embedder == "minilm" and not has_minilm():
            raise ValueError("minilm needs the package sentence-transformers; use hidden or tfidf")
        return embedder


@dataclass(frozen=True)
class Ets(Rebase):
    """Keep, at every level, the branches worth their cache, and spend the width on those.

    REBASE, except that an integer program chooses first which leaves take part.

    Source: Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", arXiv
    2502.13575, and its reference code; REBASE is arXiv 2408.00724.
    Differs: ties go to creation order in both allocations (the code uses two different orders);
    the answer phrase is searched in the answer only, in completed lines; answers that state
    nothing never win the vote, as a group they may in the code; the encoder is the generator
    itself by default; `coverage` and `node_cost` are ours and off by default.
    """

    params: EtsParams
    name: ClassVar[str] = "ets"
    Params: ClassVar[type[EtsParams]] = EtsParams
    pruned_because: ClassVar[str] = "not worth its cache"

    async def shares(
        self, search: Search, leaves: Sequence[Branch], rewards: Sequence[float], width: int
    ) -> list[int]:
        """Weights, clusters, integer program; then the width is shared out among the kept."""
        temperature = self.params.softmax_temperature
        weights = rebase_counts(rewards, width, temperature)
        if len(leaves) == 1:
            return weights
        problem = self._problem(leaves, weights, await self._clusters(search, leaves))
        is_quick = len(leaves) <= FEW_BRANCHES
        kept, seconds = await beside_the_loop(is_quick, _solved, problem)
        is_solved = kept is not None
        if kept is None:  # plain REBASE
            kept = list(range(len(leaves)))
        floor = int(self.params.coverage and len(kept) <= width)
        rest = width - floor * len(kept)
        counts = [0] * len(leaves)
        parts = rebase_counts([rewards[at] for at in kept], rest, temperature)
        for at, part in zip(kept, parts, strict=True):
            counts[at] = floor + part
        grown = [at for at, count in enumerate(counts) if count]
        search.tree.record(
            Selected(
                depth=leaves[0].depth,
                leaves=len(leaves),
                nodes=problem.num_nodes(range(len(leaves))),
                clusters=problem.num_clusters(range(len(leaves))),
                kept_leaves=len(grown),
                kept_nodes=problem.num_nodes(grown),
                kept_clusters=problem.num_clusters(grown),
                lost_leaves=len(kept) - len(grown),
                lost_clusters=problem.num_clusters(kept) - problem.num_clusters(grown),
                solver_ms=round(seconds * 1000, 3),
                is_solved=is_solved,
            )
        )
        return counts

    def _problem(
        self, leaves: Sequence[Branch], weights: Sequence[int], clusters: Sequence[int]
    ) -> KeepProblem:
        tokens = {node.id: node.step.num_tokens for leaf in leaves for node in leaf.lineage}
        return KeepProblem(
            weights=weights,
            paths=[(0, *(node.id for node in leaf.lineage)) for leaf in leaves],
            clusters=clusters,
            lambda_b=self.params.lambda_b,
            lambda_d=self.params.lambda_d,
            costs=node_shares(tokens) if self.params.node_cost == "tokens" else None,
        )

    async def _clusters(self, search: Search, leaves: Sequence[Branch]) -> list[int]:
        """A cluster per leaf, by its last step; empty where clusters decide nothing."""
        texts = [leaf.step.text for leaf in leaves]
        if not self.params.lambda_d or len(set(texts)) == 1:
            return []
        try:
            vectors = await self._embed(search, leaves, texts)
        except BudgetExhausted:  # the deadline: the next expansion is refused, then the vote comes
            return []
        is_quick = len(leaves) <= FEW_BRANCHES
        distance = self.params.cluster_distance
        return await beside_the_loop(is_quick, clusters_of, vectors, distance)

    async def _embed(
        self, search: Search, leaves: Sequence[Branch], texts: list[str]
    ) -> npt.NDArray[np.float32]:
        if self.params.embedder == "tfidf":
            return await tfidf_beside_the_loop(texts)
        if self.params.embedder == "minilm":
            try:
                return await asyncio.to_thread(minilm, texts)
            except OSError as err:
                raise InvalidParameter("embedder", self.name, f"minilm: {err}") from err
        has_states = Capability.HIDDEN_STATES in search.engine.capabilities
        if not has_states and "embedder" in self.params.model_fields_set:
            search.ignore("bough.params.embedder")
        return await search.embed(leaves)


def _solved(problem: KeepProblem) -> tuple[list[int] | None, float]:
    """The solution, and the seconds it took."""
    started = time.perf_counter()
    kept = solve(problem)
    return kept, time.perf_counter() - started
