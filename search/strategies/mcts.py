"""Monte Carlo tree search over steps, with the process reward in place of rollouts."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from engines.base import Capability
from search.base import Outcome, Params
from search.branch import Branch
from search.levels import Levels
from search.puct import Backup, Node, deliver, depart, select
from search.ranking import by_vote, by_worth, worth
from search.search import Search
from search.select import Aggregate
from search.tree import Resampled


class MctsParams(Params):
    """Parameters of `mcts`."""

    width: int = Field(
        default=16, ge=1, le=1024, description="Leaves expanded in all: the simulations."
    )
    children: int = Field(default=4, ge=1, le=16, description="Steps drawn from each leaf.")
    batch: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Leaves selected and expanded together; 1 is the sequential search.",
    )
    exploration: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="Weight of the exploration term of PUCT; 0 is greedy by value.",
    )
    backup: Backup = Field(
        default="mean",
        description="What a node is worth: the mean of the values below it, or the largest.",
    )
    choose: Literal["value", "visits", "vote"] = Field(
        default="value",
        description="The answer: of the highest value, down the most visited branches, or by a "
        "vote weighted with the values.",
    )
    aggregate: Aggregate | None = Field(
        default=None, description="How the values of a branch's steps become one."
    )
    max_depth: int = Field(default=25, ge=1, le=1000, description="Steps of a branch.")
    max_step_tokens: int | None = Field(
        default=None, ge=1, le=65536, description="Longest step; the model's own by default."
    )


@dataclass(frozen=True)
class Mcts:
    """Descend by PUCT to open leaves, expand and judge them, tell everyone above; again.

    Source: PUCT and its backup as in Silver et al., "Mastering the game of Go without human
    knowledge", 2017; virtual loss as in Chaslot et al., "Parallel Monte-Carlo Tree Search", 2008.
    Differs: no rollouts and no policy network. A node's value is the judge's; its prior is its
    share of the steps drawn with it, and equal steps are one node. Children are judged when they
    are drawn, so none is unvisited. A leaf is expanded once, and where nothing is open any more
    nothing is selected: to visit a finished answer again would teach nothing. Where nothing
    finished in the end, the best open leaf is continued to its end.
    """

    params: MctsParams
    name: ClassVar[str] = "mcts"
    Params: ClassVar[type[MctsParams]] = MctsParams
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.CONTINUE_TEXT})
    needs_judge: ClassVar[bool] = True

    async def run(self, search: Search) -> Outcome:
        """Select, expand, judge, back up, until the simulations or the budget are used up."""
        params, grown = self.params, _Grown(search)
        levels = await Levels.begin(search, params.max_step_tokens)
        left = params.width
        while left > 0:
            leaves = grown.select(min(left, params.batch), params)
            if not leaves:
                break
            left -= len(leaves)
            children = await levels.grow([(leaf, params.children) for leaf in leaves])
            grown.deliver(leaves, search.usable(children), params)
        ended = levels.ended
        if not any(one.is_finished for one in ended):
            ended += await self._completed(search, grown)
        return await self._chosen(search, ended, grown)

    async def _completed(self, search: Search, grown: _Grown) -> list[Branch]:
        """Whole answers from the best open leaf."""
        leaves = [one for one in search.best(grown.open_leaves) if one is not search.root]
        if not leaves or search.is_over:
            return []
        answers = await search.expand(leaves[0], self.params.children, last=True)
        await search.score(answers)
        return search.usable(answers)

    async def _chosen(self, search: Search, ended: list[Branch], grown: _Grown) -> Outcome:
        how, rest = self.params.aggregate, grown.open_leaves
        if self.params.choose == "vote":
            return await by_vote(search, ended, rest, how)
        if self.params.choose == "visits":
            first = grown.most_visited(ended)
            outcome = by_worth(search, ended, rest, how)
            ranked = sorted(outcome.candidates, key=lambda one: one.branch is not first)
            return search.outcome(ranked)
        return by_worth(search, ended, rest, how)


class _Grown:
    """The nodes of PUCT, and the branches that they stand for."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._root = Node(value=0.0, visits=0)
        self._nodes: dict[Branch, Node] = {search.root: self._root}
        self._branches: dict[Node, Branch] = {self._root: search.root}
        self._expanded: set[Branch] = set()

    @property
    def open_leaves(self) -> list[Branch]:
        """Branches that could still be continued, those of the largest depth included."""
        return [one for one in self._nodes if one.finish is None and one not in self._expanded]

    def select(self, wanted: int, params: MctsParams) -> list[Branch]:
        """Up to so many leaves for the next expansion, each under the virtual loss of the last."""
        leaves: list[Branch] = []
        while len(leaves) < wanted:
            node = select(self._root, params.exploration, params.backup)
            if node is None:
                break
            depart(node, params.children)
            leaves.append(self._branches[node])
            self._expanded.add(leaves[-1])
            if leaves[-1] is not self._search.root:
                self._search.tree.record(Resampled(leaves[-1].id, params.children))
        return leaves

    def deliver(self, leaves: list[Branch], children: list[Branch], params: MctsParams) -> None:
        """Hang what was drawn below its leaves; of equal steps the first stands for all."""
        by_leaf: dict[Branch, dict[object, list[Branch]]] = {leaf: {} for leaf in leaves}
        for one in children:
            key = (one.step.text, one.step.token_ids, one.finish)
            assert one.parent is not None
            by_leaf[one.parent].setdefault(key, []).append(one)
        for leaf, groups in by_leaf.items():
            total = sum(map(len, groups.values()))
            nodes = [self._node(leaf, group, total, params) for group in groups.values()]
            deliver(self._nodes[leaf], params.children, nodes)

    def most_visited(self, ended: list[Branch]) -> Branch | None:
        """Down from the root by visits, where an answer has ended by itself below; ties by Q."""
        below: dict[Node, list[Branch]] = defaultdict(list)
        for one in ended:
            if one.is_finished and one in self._nodes:
                for node in self._nodes[one].upwards:
                    below[node].append(one)
        node = self._root
        if not below[node]:
            return None
        while node.children:
            among = [child for child in node.children if below[child]]
            node = max(among, key=lambda child: (child.visits, child.worth("mean")))
        return self._branches[node]

    def _node(self, leaf: Branch, group: list[Branch], total: int, params: MctsParams) -> Node:
        first, *again = group
        if first.finish is None:
            self._search.prune(again, "the same step as another")
        node = Node(
            value=self._share(worth(self._search, first, params.aggregate) or 0.0),
            prior=len(group) / total,
            parent=self._nodes[leaf],
            is_open=first.finish is None and first.depth < params.max_depth,
        )
        self._nodes[first], self._branches[node] = node, first
        return node

    def _share(self, value: float) -> float:
        """A judge's value in 0..1."""
        judge = self._search.judge
        assert judge is not None
        if not math.isfinite(judge.low) or not math.isfinite(judge.high):
            return 1 / (1 + math.exp(-max(-700.0, min(700.0, value))))
        return max(0.0, min(1.0, (value - judge.low) / (judge.high - judge.low or 1.0)))
