"""What a strategy may use. Batching, claims, budget, events and cancelling live below it.

One `Search` serves one strategy; `delegate` makes an inner one over the same tree. Everything that
costs is reserved from `budget` first. When the budget or the time is used up nothing raises:
`expand` returns fewer children and at last none, `score` returns NaN for what it could not judge,
and the strategy ends with what it has.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.base import (
    Capability,
    ChatMessage,
    ChecksSampling,
    Continuation,
    EngineInfo,
    NextTokens,
    Sampling,
    TokenIds,
)
from reward_models.base import RewardInfo, RewardRow
from search.asking import ask
from search.base import Outcome, Ranked
from search.budget import Budget, Limits
from search.denoised import Denoises
from search.embedders import tfidf_beside_the_loop
from search.errors import BrokenContract, BudgetExhausted, MissingRewardModel
from search.extending import extend
from search.jobs import Job
from search.judging import Judging
from search.outcomes import first_of, nothing_produced, visible_first
from search.select import Aggregate, aggregated
from search.steps import seed_of
from search.tree import Branch, Pruned
from search.workbench import Workbench

Body: TypeAlias = "Callable[[Search], Awaitable[Outcome]]"
"""A strategy's coroutine."""
Others: TypeAlias = Callable[[str, Mapping[str, Any]], Body]
"""Gives the coroutine of the strategy with this name and these parameters, or refuses it."""


class Search(Denoises):
    """One strategy's view of one run.

    Attributes:
        root: The prompt.
        tree: Everything grown so far, by every strategy of the run.
        budget: What may still be spent.
        engine: What the engine is.
        judge: What the reward model is; None without one.
        messages: The conversation to answer, without the prefill that `root` may have.
        sampling: The request's sampling: one whole answer.
        answers: Distinct answers that the request wants back.
        given: Finished branches from an outer strategy, candidates already paid for.
        store: What is shared between runs; None without one.
        tenant: Whose request it is.
    """

    def __init__(
        self,
        bench: Workbench,
        budget: Budget,
        *,
        others: Others,
        outer: Search | None = None,
        given: Sequence[Branch] = (),
        may_promise: bool = True,
    ) -> None:
        self._bench = bench
        self._others = others
        self._members: set[int] = {branch.id for branch in given}
        self._outer = outer
        self._may_promise = may_promise
        self.budget = budget
        self.given = tuple(given)
        self.root = bench.tree.root
        self.tree = bench.tree
        self.store = bench.store
        self.tenant = bench.tenant
        self.messages = bench.messages
        self.sampling = bench.sampling
        self.answers = bench.answers
        self.engine: EngineInfo = bench.engine.info
        self.judge: RewardInfo | None = bench.judging.judge.info if bench.judging else None

    @property
    def is_over(self) -> bool:
        """Whether the budget or the time has cut something short already."""
        return self.budget.cut_short is not None or self.budget.is_past_deadline

    def rng(self, branch: Branch | None = None) -> random.Random:
        """A random stream of this branch; asked again, the same stream from its start."""
        path = (branch or self.root).path
        return random.Random(seed_of(self._bench.seed, path, "choices"))

    def stepwise(self, max_step_tokens: int | None = None) -> Sampling:
        """The request's sampling, one reasoning step at a time."""
        longest = max_step_tokens or self.engine.max_step_tokens
        return replace(
            self.sampling, boundaries=self.engine.step_delimiters, max_step_tokens=longest
        )

    async def expand(
        self,
        branch: Branch,
        n: int,
        how: Sampling | None = None,
        *,
        last: bool = False,
        closed_by: Sequence[str] = (),
    ) -> list[Branch]:
        """Draw `n` children, one whole answer or step each, in order of submission.

        Calls issued together (`asyncio.gather`, or `expand_all`) are one batch to the budget and
        the engine. Fewer children come back when the budget or the time is used up.

        Args:
            branch: What to continue.
            n: Children wanted.
            how: How to draw them; the request's sampling by default.
            last: The branch gets no further children, so what is in flight may be streamed.
            closed_by: Phrases that end the answer when a completed step contains one.

        Raises:
            BrokenContract: The branch finished, was pruned or was promised no further children.
            EngineError: What the engine raised.
        """
        job = self._job(branch, n, how, last, closed_by)
        async with aclosing(self._bench.grower.grow(job)) as children:
            return sorted([child async for child in children], key=lambda child: child.id)

    async def expand_all(
        self,
        counts: Iterable[tuple[Branch, int]],
        how: Sampling | None = None,
        *,
        last: bool = False,
        closed_by: Sequence[str] = (),
    ) -> list[Branch]:
        """`expand` of several branches as one batch: all children, in order of submission."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.expand(branch, n, how, last=last, closed_by=closed_by))
                    for branch, n in counts
                    if n > 0
                ]
        except ExceptionGroup as err:
            raise first_of(err) from err
        return [child for task in tasks for child in task.result()]

    async def expand_iter(
        self,
        branch: Branch,
        n: int,
        how: Sampling | None = None,
        *,
        last: bool = False,
        closed_by: Sequence[str] = (),
    ) -> AsyncGenerator[Branch]:
        """The children as they finish; closing the iterator cancels and discards the rest."""
        job = self._job(branch, n, how, last, closed_by)
        job.counts_discarded = True
        async with aclosing(self._bench.grower.grow(job)) as children:
            async for child in children:
                yield child

    async def extend(
        self,
        pairs: Sequence[tuple[Branch, TokenIds]],
        logps: Sequence[tuple[float, ...]] | None = None,
        *,
        last: bool = False,
    ) -> list[Branch]:
        """Append chosen tokens: one child per pair, fewer when the tokens are used up.

        An eos id, a stop string or a length limit finishes the branch.

        Args:
            pairs: Branch and tokens.
            logps: Log-probabilities of the tokens in nats; asked of the engine when left out.
            last: These branches get no children beyond those that they have then, so what their
                children agree on may be streamed; their claims go back.
        """
        async with self.budget.in_time():
            children = await extend(self._bench, self._payable(pairs), logps, self.budget)
        for child in children:
            for members in self._circles():
                members.add(child.id)
        if last:
            self._settle(children)
        return children

    async def score(self, branches: Sequence[Branch]) -> list[float]:
        """The judge's value of each branch, rounded to 1e-5; NaN where there is none.

        A branch whose reward failed is dropped: it will not be returned, and `usable` leaves it
        out. So does it those that could no longer be paid for.

        Raises:
            MissingRewardModel: There is no judge.
            RewardUnavailable: The judge is gone.
        """
        return await self._judging().score(branches, self.budget)

    async def score_by(self, judge_id: str, branches: Sequence[Branch]) -> list[float]:
        """`score` by one of the further reward models that the parameters name.

        What `value` says of a branch stays, and nothing is dropped: what it could not value is NaN.

        Raises:
            MissingRewardModel: No parameter names it.
            RewardUnavailable: It is gone.
        """
        if judge_id not in self._bench.further:
            raise MissingRewardModel("search", f"{judge_id!r}, which no parameter names")
        return await self._bench.further[judge_id].score(branches, self.budget)

    def usable(self, branches: Iterable[Branch]) -> list[Branch]:
        """Those of `branches` that have a value."""
        return [branch for branch in branches if not math.isnan(self.value(branch))]

    def value(self, branch: Branch) -> float:
        """The branch's value from `score`; NaN without one."""
        judging = self._bench.judging
        found = judging.values.get(branch.id) if judging else None
        return found.value if found else math.nan

    @property
    def reads_whole(self) -> bool:
        """Whether the judge is shown answers as a single step, for the aggregate `model`."""
        return self._bench.judging is not None and self._bench.judging.reads_whole

    def step_values(self, branch: Branch) -> tuple[float, ...]:
        """The process values of the answer so far; the single value where it is judged whole."""
        judging = self._bench.judging
        found = judging.values.get(branch.id) if judging else None
        return (found.steps or (found.value,)) if found else ()

    def aggregate(self, wanted: Aggregate | None) -> Aggregate:
        """How step values become one: as asked for, else as the judge's authors do it."""
        if self.reads_whole:
            return "model"
        return wanted or (self.judge.aggregate if self.judge else "last")

    def worth(self, branch: Branch, how: Aggregate | None = None) -> float:
        """What `step_values` come to, by `aggregate`; NaN without any."""
        return aggregated(self.step_values(branch), self.aggregate(how))

    async def next_tokens(self, branches: Sequence[Branch], *, mass: float) -> list[NextTokens]:
        """Per branch, the likeliest next tokens that hold `mass` of the probability."""
        claims = [self._bench.claims.claim(branch) for branch in branches]
        async with self.budget.in_time():
            return await self._bench.engine.next_logprobs(claims, mass=mass)

    async def next_rewards(self, branches: Sequence[Branch]) -> list[RewardRow]:
        """Per branch, the reward of every possible next token; each is a reward call.

        Raises:
            MissingRewardModel: There is no judge, or it values no next tokens.
            BudgetExhausted: They cannot all be paid for, or the time is up.
            RewardUnavailable: The judge is gone.
        """
        async with self.budget.in_time():
            return await self._judging().next_rewards(branches, self.budget)

    def keep_value(self, branch: Branch, value: float) -> None:
        """This is the branch's value: read from `next_rewards`, stored, or an equal branch's."""
        self._judging().learn(branch, value)

    async def embed(self, branches: Sequence[Branch]) -> npt.NDArray[np.float32]:
        """A vector for each branch's last step, (n, d): hidden states, else TF-IDF of the text."""
        if Capability.HIDDEN_STATES not in self.engine.capabilities:
            return await tfidf_beside_the_loop([branch.step.text for branch in branches])
        keys = [(branch.token_ids, len(branch.step.token_ids)) for branch in branches]
        distinct = dict(zip(keys, branches, strict=True))  # equal branches have one vector
        claims = [self._bench.claims.claim(branch) for branch in distinct.values()]
        sizes = [max(1, size) for _, size in distinct]
        async with self.budget.in_time():
            vectors = await self._bench.engine.embed(claims, sizes)
        row_of = {key: row for row, key in enumerate(distinct)}
        return vectors[[row_of[key] for key in keys]]

    async def ask(
        self, messages: Sequence[ChatMessage], how: Sampling | None = None
    ) -> Continuation:
        """One answer to a side question, outside the tree; its claim is given back already.

        Raises:
            BudgetExhausted: Nothing is left to ask with; the run then ends with its best branch.
        """
        number = next(self._bench.questions)
        return await ask(
            self._bench.engine,
            messages,
            how or self.sampling,
            seed=seed_of(self._bench.seed, (number,), "question"),
            budget=self.budget,
        )

    async def delegate(
        self,
        name: str,
        params: Mapping[str, Any],
        limits: Limits,
        *,
        given: Sequence[Branch] = (),
        last: bool = False,
    ) -> Outcome:
        """Let another strategy search from the same root, paid from this budget.

        Args:
            name: The strategy.
            params: Its parameters.
            limits: The most it may spend.
            given: Finished branches that it may count as candidates already paid for.
            last: Nothing else will grow from the root, so the inner one may stream.

        Raises:
            SearchError: As `Run`, when the inner strategy does not fit.
            UnsupportedByEngine: Likewise.
        """
        body = self._others(name, params)
        inner = Search(
            self._bench,
            self.budget.child(limits),
            others=self._others,
            outer=self,
            given=given,
            may_promise=last and self._may_promise,
        )
        return await inner.carry_out(body)

    async def carry_out(self, body: Body) -> Outcome:
        """Run a strategy's coroutine; out of budget in the middle of it, the best branch so far."""
        try:
            return await body(self)
        except BudgetExhausted:
            return self.outcome(())
        except ExceptionGroup as err:
            first = first_of(err)
            if isinstance(first, BudgetExhausted):
                return self.outcome(())
            raise first from err

    def outcome(self, ranked: Sequence[Ranked]) -> Outcome:
        """The outcome for candidates ranked best first.

        Where none of them has visible text, the best branch of the tree that has some leads.

        Raises:
            BudgetExhausted: Nothing was produced, for want of budget or time.
            BrokenContract: Nothing was produced, for no reason.
        """
        found = visible_first(ranked)
        if not found or not found[0].branch.text.strip():
            found = (*self._best_grown(), *found)
        if not found:
            what = self.budget.cut_short
            if what is None:
                raise BrokenContract("the strategy ended without a single candidate")
            raise nothing_produced(what, self.budget)
        return Outcome(found[0].branch, found, self.budget.cut_short or "done")

    def best(self, branches: Iterable[Branch]) -> list[Branch]:
        """Best first: finished ones, then by value, then the deepest, then in order of creation."""
        return sorted(branches, key=self._merit)

    def prune(self, branches: Iterable[Branch], why: str) -> None:
        """These are neither expanded nor returned any more; their claims go back."""
        fresh = [branch for branch in branches if branch.id not in self._bench.pruned]
        for branch in fresh:
            self._bench.pruned.add(branch.id)
            self.tree.record(Pruned(branch.id, why))
            self._bench.grower.release(branch)
            for judging in (self._bench.judging, *self._bench.further.values()):
                if judging is not None:
                    judging.release(branch)
        self._bench.agreement.exclude(fresh)

    def may_return(self, branches: Sequence[Branch]) -> None:
        """Only these, and what is open or in flight below them, may still be returned."""
        among = None if self._outer is None else self._members
        self._bench.agreement.narrow(branches, among)

    def ignore(self, name: str) -> None:
        """A parameter of the request that could not be honoured; listed in the reply."""
        self._bench.ignored[name] = None

    def did_without(self, what: str) -> None:
        """The store failed at this, and the run goes on; counted by the server."""
        self._bench.store_errors.append(what)

    def note(self, what: str) -> None:
        """What the strategy decided, in a few words of ASCII; the reply's `resolved` ends in it."""
        self._bench.notes[what] = None

    def _job(
        self, branch: Branch, n: int, how: Sampling | None, last: bool, closed_by: Sequence[str]
    ) -> Job:
        how = how or self.sampling
        engine = self._bench.engine
        if last and isinstance(engine, ChecksSampling):
            engine.check_sampling(how)  # a refusal must come before the promise
        return Job(
            branch=branch,
            n=n,
            how=how,
            budget=self.budget,
            members=self._circles(),
            last=last and (self._may_promise or branch.id in self._members),
            closed_by=closed_by,
        )

    def _settle(self, children: Sequence[Branch]) -> None:
        """Let children stand for their parents, as far as these may be promised."""
        if self._bench.judging is not None:
            self._bench.judging.inherit(children)
        parents = {one.parent.id: one.parent for one in children if one.parent is not None}
        settled = [one for one in parents.values() if self._may_promise or one.id in self._members]
        self._bench.agreement.settle(settled)
        for one in settled:
            self._bench.grower.release(one)

    def _circles(self) -> tuple[set[int], ...]:
        """The branches of this search and of every outer one."""
        outer = self._outer._circles() if self._outer else ()
        return (self._members, *outer)

    def _merit(self, branch: Branch) -> tuple[bool, bool, float, int, int]:
        value = self.value(branch)
        is_dropped = self._bench.judging is not None and branch.id in self._bench.judging.dropped
        worth = -value if not math.isnan(value) else math.inf
        return (is_dropped, not branch.is_finished, worth, -branch.depth, branch.id)

    def _best_grown(self) -> tuple[Ranked, ...]:
        """The best branch with visible text that would not take back what was streamed."""
        grown = [
            branch
            for branch in self.tree.branches
            if (self._outer is None or branch.id in self._members)
            and branch.text.strip()
            and self._bench.agreement.allows(branch)
        ]
        if not grown:
            return ()
        first = self.best(grown)[0]
        value = self.value(first)
        return (Ranked(first, None if math.isnan(value) else value),)

    def _payable(
        self, pairs: Sequence[tuple[Branch, TokenIds]]
    ) -> Sequence[tuple[Branch, TokenIds]]:
        left = self.budget.left("generated_tokens")
        if left is None:
            return pairs
        costs = list(accumulate(len(ids) for _, ids in pairs))
        kept = bisect_right(costs, left)
        if kept < len(pairs):
            self.budget.cut("generated_tokens", costs[-1])
        return pairs[:kept]

    def _judging(self) -> Judging:
        if self._bench.judging is None:
            raise MissingRewardModel("search", "it judges its candidates")
        return self._bench.judging
