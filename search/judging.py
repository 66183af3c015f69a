"""Asking the reward model: one call per batch, rounded values, failed candidates dropped.

Values are rounded to 1e-5 before anyone ranks by them, because batched matrix products differ in
their last bits with the batch. A candidate is judged once; a later question gets the same value,
and so do equal candidates of one batch, which are one call.

Of an answer that the request began, judges of steps read the beginning too, because a step means
nothing without those in front of it, and what they say of the beginning's own steps is left out.
Judges of outcomes judge only what the model wrote, and are shown the beginning where their card
says so. A multifurcation model is shown it as a message and knows what to do with it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from engines.base import ChatMessage
from reward_models.base import (
    Candidate,
    Claim,
    RewardKind,
    RewardModel,
    RewardRow,
    Score,
    asked_of,
)
from reward_models.base import MultifurcationRewardModel as Multifurcation
from reward_models.errors import RewardInputError, RewardUnavailable
from search.branch import Branch
from search.budget import Budget
from search.errors import BrokenContract, BudgetExhausted, MissingRewardModel
from search.steps import split_steps
from search.tree import Failed, Scored, SearchTree

ROUNDING = 5
"""Decimals that values keep."""

_OF_STEPS: Final = (RewardKind.PROCESS, RewardKind.VERIFIER)


@dataclass(frozen=True)
class Judgement:
    """A judge's rounded value of a branch, and its process values, one per step."""

    value: float
    steps: tuple[float, ...] = ()


class Judging:
    """The judge of one run: its claims, its values, its drops.

    Args:
        judge: The reward model.
        messages: The conversation to answer, with the beginning of the answer if there is one.
        prefill: That beginning, the last message's text.
        tenant: Whose it is.
        delimiters: What ends a step.
        reads_whole: Whether the judge is shown answers as a single step.
        tree: Where values and drops are recorded.
        drop: Called with every branch that is dropped.

    Attributes:
        values: What is known, by branch.
        dropped: Branches whose reward failed.
        num_calls: Reward calls so far.
        num_tokens: Tokens that they took.
    """

    def __init__(
        self,
        judge: RewardModel,
        *,
        messages: tuple[ChatMessage, ...],
        prefill: str = "",
        tenant: str,
        delimiters: tuple[str, ...],
        reads_whole: bool = False,
        tree: SearchTree,
        drop: Callable[[Branch], None],
    ) -> None:
        self.judge = judge
        self.reads_whole = reads_whole
        self.values: dict[int, Judgement] = {}
        self.dropped: set[int] = set()
        self._messages = asked_of(judge.info, messages, is_begun=bool(prefill))
        self._prefill = prefill if judge.info.kind in _OF_STEPS else ""
        self._tenant = tenant
        self._delimiters = delimiters
        self._tree = tree
        self._drop = drop
        self._claims: dict[int, Claim] = {}
        self._read: set[int] = set()
        self._opening = asyncio.Lock()
        self.num_calls = 0
        self.num_tokens = 0

    async def score(self, branches: Sequence[Branch], budget: Budget) -> list[float]:
        """One value per branch, NaN where it was dropped or nothing was left to pay the judge.

        Raises:
            RewardUnavailable: The judge is gone or failed as a whole.
            BrokenContract: The judge returned fewer or more scores than it was asked for.
        """
        fresh = [
            one
            for one in dict.fromkeys(branches)
            if one.id not in self.values and one.id not in self.dropped
        ]
        groups = self._affordable(_alike(fresh), budget)
        if groups:
            with budget.reserve(reward_calls=len(groups)) as reservation:
                scores: list[Score] = []
                with self._named(), suppress(BudgetExhausted):  # out of time is an outcome
                    async with budget.in_time():
                        scores = await self._judged([group[0] for group in groups])
                num_tokens = sum(one.tokens_computed for one in scores)
                reservation.settle(reward_calls=len(groups), reward_tokens=num_tokens)
                self._count(len(groups), num_tokens)
            for group, score in zip(groups, scores, strict=bool(scores)):
                for branch in group:
                    self._keep(branch, score, budget)
                    if branch.finish is not None:  # nothing will be read behind it
                        self.release(branch)
        return [
            self.values[one.id].value if one.id in self.values else math.nan for one in branches
        ]

    async def next_rewards(self, branches: Sequence[Branch], budget: Budget) -> list[RewardRow]:
        """The reward of every possible next token of each branch, a reward call for each.

        Raises:
            MissingRewardModel: The judge is not of the multifurcation kind.
            BudgetExhausted: They cannot all be paid for, or the time was up; nothing was asked.
            BrokenContract: The judge returned fewer or more rows than it was asked for.
        """
        judge = self.judge
        if not isinstance(judge, Multifurcation):
            raise MissingRewardModel("next_rewards", f"{judge.info.kind} judges have none")
        left = budget.left("reward_calls")
        if left is not None and left < len(branches):
            budget.cut("reward_calls", len(branches))
        with budget.reserve(reward_calls=len(branches)) as reservation:
            with self._named():
                root = await self._root_claim()
                rows = await judge.next_rewards([self._claim(one, root) for one in branches])
            read = self._newly_read(branches, root)
            reservation.settle(reward_calls=len(branches), reward_tokens=read)
            self._count(len(branches), read)
        if len(rows) != len(branches):
            raise BrokenContract(
                f"reward model {judge.info.model_id!r} returned {len(rows)} rows of rewards "
                f"for {len(branches)} branches"
            )
        return rows

    def learn(self, branch: Branch, value: float) -> None:
        """Keep a value that was read from a row of next rewards."""
        self.values[branch.id] = Judgement(round(value, ROUNDING))
        self._tree.record(Scored(branch.id, self.values[branch.id].value))

    def inherit(self, children: Iterable[Branch]) -> None:
        """Claim these from their parents' claims, where there are any, and give those back."""
        parents = set()
        for child in children:
            parent = child.parent
            assert parent is not None
            if parent.id in self._claims and child.finish is None:
                above = self._claims[parent.id]
                self._claims[child.id] = above.extend(child.step.token_ids)
            parents.add(parent)
        for parent in parents - {self._tree.root}:
            self.release(parent)

    def release(self, branch: Branch) -> None:
        """Give the judge's claim on a branch back."""
        claim = self._claims.pop(branch.id, None)
        if claim is not None:
            claim.release()

    def close(self) -> None:
        """Give every claim back."""
        claims = list(self._claims.values())
        self._claims.clear()
        for claim in claims:
            claim.release()

    def _count(self, calls: int, tokens: int) -> None:
        self.num_calls += calls
        self.num_tokens += tokens

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say which judge it was that is gone: a run may have several."""
        try:
            yield
        except RewardUnavailable as err:
            err.model_id = self.judge.info.model_id
            raise

    def _affordable(self, groups: list[list[Branch]], budget: Budget) -> list[list[Branch]]:
        if budget.is_past_deadline and groups:
            budget.cut_at_deadline()
            return []
        left = budget.left("reward_calls")
        if left is None or left >= len(groups):
            return groups
        budget.cut("reward_calls", len(groups))
        return groups[:left]

    async def _judged(self, branches: Sequence[Branch]) -> list[Score]:
        root = await self._root_claim()
        batch = [self._candidate(one, root) for one in branches]
        try:
            scores = await self.judge.score(batch)
        except RewardInputError:
            # One candidate that the judge cannot read must not cost the others their values.
            scores = [await self._judged_alone(one) for one in batch]
        if len(scores) != len(batch):
            raise BrokenContract(
                f"reward model {self.judge.info.model_id!r} returned {len(scores)} scores "
                f"for {len(batch)} candidates"
            )
        return scores

    async def _judged_alone(self, candidate: Candidate) -> Score:
        try:
            return (await self.judge.score([candidate]))[0]
        except RewardInputError:
            return Score(value=math.nan)

    def _keep(self, branch: Branch, score: Score, budget: Budget) -> None:
        if all(map(math.isfinite, (score.value, *score.steps))):
            steps = tuple(round(one, ROUNDING) for one in self._own_steps(branch, score.steps))
            self.values[branch.id] = Judgement(round(score.value, ROUNDING), steps)
            self._tree.record(Scored(branch.id, self.values[branch.id].value, steps))
            return
        self.dropped.add(branch.id)
        budget.count(dropped=1, wasted_tokens=branch.step.num_tokens)
        self._tree.record(Failed(branch.id, f"its reward is {score.value}, not a finite number"))
        self._drop(branch)

    def _candidate(self, branch: Branch, claim: Claim) -> Candidate:
        text = self._prefill + branch.text
        return Candidate(
            messages=self._messages,
            text=text,
            token_ids=() if self._prefill else branch.token_ids,
            steps=self._steps(text),
            claim=claim,
            is_finished=branch.finish is not None,
        )

    def _steps(self, text: str) -> tuple[str, ...]:
        if self.reads_whole:
            return (text,) if text else ()
        return split_steps(text, self._delimiters)

    def _own_steps(self, branch: Branch, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values of steps that do not end in the prefill."""
        if not (self._prefill and values):
            return values
        ends = accumulate(map(len, self._steps(self._prefill + branch.text)))
        return values[sum(end <= len(self._prefill) for end in ends) :]

    def _newly_read(self, branches: Iterable[Branch], root: Claim) -> int:
        """Tokens in front of these rows that no earlier row of the run had read."""
        num_tokens = 0
        for branch in branches:
            node: Branch | None = branch
            while node is not None and node.id not in self._read:
                self._read.add(node.id)
                is_root = node.parent is None
                num_tokens += len(root.token_ids) if is_root else node.step.num_tokens
                node = node.parent
        return num_tokens

    async def _root_claim(self) -> Claim:
        async with self._opening:
            if self._tree.root.id not in self._claims:
                opened = await self.judge.open(self._messages, tenant=self._tenant)
                self._claims[self._tree.root.id] = opened
        return self._claims[self._tree.root.id]

    def _claim(self, branch: Branch, root: Claim) -> Claim:
        """The judge's claim on a branch, made from the nearest one above it."""
        if branch.id not in self._claims:
            above = self._claim(branch.parent, root) if branch.parent is not None else root
            self._claims[branch.id] = above.extend(branch.step.token_ids)
        return self._claims[branch.id]


def _alike(branches: Iterable[Branch]) -> list[list[Branch]]:
    """Branches that no judge can tell apart, together, in order of their first."""
    groups: dict[object, list[Branch]] = {}
    for one in branches:
        key = (one.text, one.token_ids, one.finish is not None)
        groups.setdefault(key, []).append(one)
    return list(groups.values())
