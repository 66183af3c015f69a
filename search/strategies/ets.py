"""Efficient tree search: REBASE allocation over a frontier pruned by an integer program."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from engines.base import Capability
from search.answers import ANSWER_PHRASES, extract_answer
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.cover import KeepProblem, clusters_of, solve
from search.embedders import has_minilm, minilm, tfidf_beside_the_loop
from search.errors import BudgetExhausted, InvalidParameter
from search.offload import FEW_BRANCHES, beside_the_loop
from search.search import Search
from search.select import Aggregate, aggregated, order_by_vote, rebase_counts, vote
from search.tree import Resampled


class EtsParams(Params):
    """Parameters of `ets`."""

    width: int = Field(
        default=16, ge=1, le=1024, description="Continuations drawn at the first level."
    )
    softmax_temperature: float = Field(
        default=0.2, gt=0, le=100, description="Of the rewards; smaller is greedier."
    )
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
    aggregate: Aggregate = Field(
        default="last",
        description="Weight of a vote: how the values of an answer's steps become one.",
    )
    coverage: bool = Field(
        default=False,
        description="Give every kept branch one continuation before the rest is shared out.",
    )
    max_depth: int = Field(default=25, ge=1, le=1000, description="Levels.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )

    @field_validator("embedder")
    @classmethod
    def _is_installed(cls, embedder: str) -> str:
        if embedder == "minilm" and not has_minilm():
            raise ValueError("minilm needs the package sentence-transformers; use hidden or tfidf")
        return embedder


@dataclass(frozen=True)
class Ets:
    """Keep, at every level, the branches worth their cache, and spend the width on those.

    Source: Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", arXiv
    2502.13575, and its reference code; REBASE is arXiv 2408.00724.
    Differs: ties go to creation order in both allocations (the code uses two different orders);
    the answer phrase is searched in the answer only, in completed lines; the encoder is the
    generator itself by default; `coverage` is ours and off by default.
    """

    params: EtsParams
    name: ClassVar[str] = "ets"
    Params: ClassVar[type[EtsParams]] = EtsParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Select, expand, judge, level by level; then vote."""
        params = self.params
        how = search.stepwise(params.max_step_tokens)
        await search.score(search.given)
        ended = search.usable(search.given)
        frontier = [search.root]
        for _ in range(params.max_depth):
            counts = await self._select(search, frontier, max(0, params.width - len(ended)))
            children = await search.expand_all(
                zip(frontier, counts, strict=True), how, last=True, closed_by=ANSWER_PHRASES
            )
            if not children:
                frontier = [leaf for leaf, n in zip(frontier, counts, strict=True) if n]
                break
            await search.score(children)
            children = search.usable(children)
            ended += [one for one in children if one.finish is not None]
            frontier = [one for one in children if one.finish is None]
            if not frontier or len(ended) >= params.width:
                break
        return await self._vote(search, ended, frontier)

    async def _select(self, search: Search, leaves: list[Branch], width: int) -> list[int]:
        """How many continuations each leaf gets; the others are pruned."""
        rewards = [1.0 if leaf is search.root else search.value(leaf) for leaf in leaves]
        kept = await self._keep(search, leaves, rewards, width)
        shares = self._allocate([rewards[at] for at in kept], width)
        counts = [0] * len(leaves)
        for at, share in zip(kept, shares, strict=True):
            counts[at] = share
        for leaf, count in zip(leaves, counts, strict=True):
            if count and leaf is not search.root:
                search.tree.record(Resampled(leaf.id, count))
        search.prune(
            [leaf for leaf, count in zip(leaves, counts, strict=True) if not count],
            "not worth its cache",
        )
        return counts

    async def _keep(
        self, search: Search, leaves: list[Branch], rewards: Sequence[float], width: int
    ) -> list[int]:
        """The leaves that the integer program keeps; all of them when it cannot be solved."""
        everything = list(range(len(leaves)))
        if len(leaves) == 1:
            return everything
        problem = KeepProblem(
            weights=rebase_counts(rewards, width, self.params.softmax_temperature),
            paths=[(0, *(node.id for node in leaf.lineage)) for leaf in leaves],
            clusters=await self._clusters(search, leaves),
            lambda_b=self.params.lambda_b,
            lambda_d=self.params.lambda_d,
        )
        kept = await beside_the_loop(len(leaves) <= FEW_BRANCHES, solve, problem)
        return everything if kept is None else kept

    def _allocate(self, rewards: Sequence[float], width: int) -> list[int]:
        temperature = self.params.softmax_temperature
        if self.params.coverage and len(rewards) <= width:
            rest = rebase_counts(rewards, width - len(rewards), temperature)
            return [1 + count for count in rest]
        return rebase_counts(rewards, width, temperature)

    async def _clusters(self, search: Search, leaves: list[Branch]) -> list[int]:
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
        self, search: Search, leaves: list[Branch], texts: list[str]
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

    async def _vote(self, search: Search, ended: list[Branch], frontier: list[Branch]) -> Outcome:
        """Every finished branch votes with its reward; without one, the best branch there is."""
        voters = [one for one in ended if one.is_finished]
        if not voters:
            rest = [one for one in search.best([*ended, *frontier]) if one is not search.root]
            return search.outcome([Ranked(one, self._value(search, one)) for one in rest])
        weights = [self._value(search, one) or 0.0 for one in voters]
        answers = [extract_answer(one.text) for one in voters]
        groups = await asyncio.to_thread(vote, answers, weights)  # algebra may take its time
        order = order_by_vote(groups, weights)
        return search.outcome([Ranked(voters[at], weights[at]) for at in order])

    def _value(self, search: Search, branch: Branch) -> float | None:
        value = aggregated(search.step_values(branch), self.params.aggregate)
        return None if math.isnan(value) else value
