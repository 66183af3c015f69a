"""Growing a tree of denoising rollouts: select, roll out, judge, back up, round by round.

A round selects up to `width` rollouts under the virtual loss of each other, runs them level by
level, so that rows at the same level go through the model together, judges their texts in one
batch and backs them up in the order of selection. So what is selected depends on no timing, and a
rollout sees the ends of all but those of its own round. With a width of 1 this is Algorithm 1.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from engines.base import TokenIds
from search.base import Ranked
from search.branch import Branch
from search.budget import Limited, Reservation
from search.chains import Chain
from search.diffusion_tree import (
    Node,
    Pick,
    Rules,
    depart,
    give_up,
    land,
    revisit,
    select,
)
from search.search import Search
from search.select import Aggregate

_PAID: Final[tuple[Limited, ...]] = ("nfe", "generated_tokens", "candidates", "reward_calls")


@dataclass(frozen=True)
class Bounds:
    """When growing ends, beside the request's budget.

    Attributes:
        nfe: Evaluations; None without a bound of its own.
        iterations: Selections, those that end in a known text included.
        target: A reward that is good enough; None for none.
    """

    nfe: int | None
    iterations: int
    target: float | None = None


@dataclass
class Rewards:
    """The rewards so far: their spread and the best."""

    count: int = 0
    best: float = -math.inf
    _mean: float = 0.0
    _squares: float = 0.0

    def add(self, reward: float) -> None:
        """One more, by Welford's update."""
        self.count += 1
        self.best = max(self.best, reward)
        step = reward - self._mean
        self._mean += step / self.count
        self._squares += step * (reward - self._mean)

    @property
    def spread(self) -> float:
        """Their standard deviation; 1 while all are equal, so that visits decide."""
        return math.sqrt(self._squares / self.count) if self._squares > 0 else 1.0


@dataclass
class _Flight:
    path: list[Node]
    hold: Reservation
    nfe: int
    branches: list[Branch]

    @property
    def level(self) -> int:
        """Where it has come to."""
        return self.path[-1].level + len(self.branches) - 1


@dataclass(frozen=True)
class Landed:
    """A rollout that was backed up.

    Attributes:
        states: From below the root to the finished text.
        begun: How many of these were there before.
        reward: The text's.
        costs: Evaluations that each state took.
    """

    states: tuple[TokenIds, ...]
    begun: int
    reward: float
    costs: tuple[int, ...] = ()


PickFor: TypeAlias = "Callable[[Rollouts], Pick]"
"""Makes the choice among children, which may read the rewards so far."""


@dataclass(eq=False)
class Rollouts:
    """The tree of one run.

    Attributes:
        search: Pays, runs and judges.
        chain: Every rollout's.
        levels: Steps left at each branch level, the root's first.
        rules: How the tree grows.
        bounds: When growing ends.
        width: Rollouts of a round.
        pick_for: How to go down.
        aggregate: How the values of an answer's steps become one.
        root: The tree.
        rewards: Those so far.
        landed: What this run added.
        branches: The first branch that each node stood for; the root's is the search's.
    """

    search: Search
    chain: Chain
    levels: tuple[int, ...]
    rules: Rules
    bounds: Bounds
    width: int
    pick_for: PickFor
    aggregate: Aggregate | None = None
    root: Node = field(init=False)
    rewards: Rewards = field(default_factory=Rewards)
    landed: list[Landed] = field(default_factory=list)
    branches: dict[Node, Branch] = field(default_factory=dict)
    _known: dict[tuple[str, TokenIds], float] = field(default_factory=dict)
    _iterations: int = 0
    _planned: int = 0

    def __post_init__(self) -> None:
        self.root = Node(self.text_of(self.chain.start), 0)
        self.branches[self.root] = self.search.root
        self._spent_before = self.search.budget.spent.nfe

    def text_of(self, row: TokenIds) -> TokenIds:
        """A row without its prompt."""
        return row[self.chain.prompt_tokens :]

    def adopt(self, root: Node, branches: dict[Node, Branch]) -> None:
        """Go on with a tree that was restored, whose values are up to date."""
        self.root, self.branches = root, {root: self.search.root, **branches}
        for node in root.nodes:
            if node.is_end:
                branch = branches[node]
                self._known[branch.text, branch.token_ids] = node.value
                for _ in range(node.samples):
                    self.rewards.add(node.value)

    @property
    def nfe(self) -> int:
        """Evaluations that this run has made."""
        return self.search.budget.spent.nfe - self._spent_before

    async def grow(self) -> None:
        """Roll out until the budget, the time or the iterations are used up, or one is enough."""
        pick = self.pick_for(self)
        while not self._is_enough():
            flights = self._select(pick)
            if flights:
                await self._fly(flights)
            elif not self._affords(self._cheapest):
                self._cut(self._cheapest)
                return
            else:
                await asyncio.sleep(0)  # known texts only: nothing else here gives way

    def _is_enough(self) -> bool:
        target = self.bounds.target
        return (
            self.search.is_over
            or self._iterations >= self.bounds.iterations
            or (target is not None and self.rewards.best >= target)
        )

    def _select(self, pick: Pick) -> list[_Flight]:
        """The rollouts of the next round; known texts are visited on the way."""
        flights: list[_Flight] = []
        for _ in range(min(self.width, self.bounds.iterations - self._iterations)):
            path = select(self.root, self.rules, pick, lambda node: self._affords(self._cost(node)))
            if path[-1].is_end:
                self._iterations += 1
                revisit(path, self.rules)
                continue
            cost = self._cost(path[-1])
            if not self._affords(cost):
                break
            self._iterations += 1
            depart(path)
            hold = self.search.budget.reserve(**cost)
            self._planned += cost["nfe"]
            flights.append(_Flight(path, hold, cost["nfe"], [self.branches[path[-1]]]))
        return flights

    def _cost(self, node: Node) -> dict[str, int]:
        row = self.chain.start[: self.chain.prompt_tokens] + node.state
        return self._price(row, node.level)

    @property
    def _cheapest(self) -> dict[str, int]:
        """Of a rollout from the last level, or from the root while there is nothing else."""
        level = len(self.levels) - 1 if self.root.children else 0
        return self._price(self.chain.start, level)

    def _price(self, row: TokenIds, level: int) -> dict[str, int]:
        cost = self.chain.cost(row, self.chain.steps - self.levels[level])
        return {**cost, "candidates": len(self.levels) - level, "reward_calls": 1}

    def _affords(self, cost: dict[str, int]) -> bool:
        own = self.bounds.nfe
        fits = own is None or self.nfe + self._planned + cost["nfe"] <= own
        return fits and self.search.budget.affords(**cost)

    def _cut(self, cost: dict[str, int]) -> None:
        budget = self.search.budget
        for what in _PAID:
            if not budget.affords(**{what: cost[what]}):
                budget.cut(what, cost[what])
                return

    async def _fly(self, flights: list[_Flight]) -> None:
        for flight in flights:
            flight.hold.settle()  # nothing else can take it before the jobs reserve it themselves
        self._planned = 0
        found = dict[int, float]()
        try:
            for level in range(len(self.levels)):
                await self._denoise([one for one in flights if one.level == level], level)
            ended = [one for one in flights if one.level == len(self.levels)]
            rewards = await self._judge([one.branches[-1] for one in ended])
            found = dict(zip(map(id, ended), rewards, strict=True))
        finally:  # a round that fails or is cancelled leaves nothing in flight
            for flight in flights:
                self._land(flight, found.get(id(flight), math.nan))

    async def _denoise(self, flights: Sequence[_Flight], level: int) -> None:
        jobs = [
            (one.branches[-1], self.chain.job(one.branches[-1], self._stop(level)))
            for one in flights
        ]
        children = await self.search.denoise(jobs)
        for flight, child in zip(flights, children, strict=False):
            flight.branches.append(child)

    def _stop(self, level: int) -> int:
        """The step at which the level below begins."""
        below = self.levels[level + 1] if level + 1 < len(self.levels) else 0
        return self.chain.steps - below

    async def _judge(self, ends: Sequence[Branch]) -> list[float]:
        """One reward each, NaN where there is none; equal texts are judged once in a run."""
        known = [one for one in ends if (one.text, one.token_ids) in self._known]
        await self.search.score([one for one in ends if one not in known])
        for one in known:
            self.search.keep_value(one, self._known[one.text, one.token_ids])
        rewards = [
            self.search.worth(one, self.aggregate) if self._has_value(one) else math.nan
            for one in ends
        ]
        for one, reward in zip(ends, rewards, strict=True):
            if not math.isnan(reward):
                self._known.setdefault((one.text, one.token_ids), reward)
        return rewards

    def _has_value(self, branch: Branch) -> bool:
        return not math.isnan(self.search.value(branch))

    def _land(self, flight: _Flight, reward: float) -> None:
        """Back a rollout up; one that did not end, or has no reward, leaves no trace."""
        if math.isnan(reward):
            give_up(flight.path)
            return
        states, costs = [], []
        for branch in flight.branches[1:]:
            assert branch.state is not None
            states.append(self.text_of(branch.state.row))
            costs.append(branch.state.nfe)
        begun = flight.path[1:]
        self.landed.append(
            Landed(
                (*(node.state for node in begun), *states),
                len(begun),
                reward,
                (*(round(node.nfe / node.samples) for node in begun), *costs),
            )
        )
        end = land(flight.path, states, reward, self.rules, costs)
        for node, branch in zip(end.upwards, reversed(flight.branches[1:]), strict=False):
            self.branches.setdefault(node, branch)
        self.rewards.add(reward)

    def ranked(self, nodes: Sequence[Node]) -> list[Ranked]:
        """Finished texts as candidates."""
        return [Ranked(self.branches[node], node.value) for node in nodes]

    def ends(self) -> list[Node]:
        """Every finished text, the best first, ties in the order of creation."""
        found = [node for node in self.root.nodes if node.is_end]
        return sorted(found, key=lambda node: (-node.value, self.branches[node].id))
