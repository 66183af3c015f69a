"""One request's search, from its parameters to its result. Streamed or not, the same answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from engines.base import (
    Capability,
    ChatMessage,
    Engine,
    Prefix,
    Prompt,
    Sampling,
    prompt_size,
)
from reward_models.base import RewardModel
from search.base import Outcome, Params, StopReason
from search.branch import Branch
from search.budget import Budget, Limits
from search.claims import ClaimBook
from search.errors import BrokenContract, InvalidParameter
from search.growth import Grower
from search.judging import Judging
from search.pilot import pilot_lengths
from search.registry import (
    body_of,
    check_fit,
    check_sampling,
    further_judges,
    make_strategy,
    reads_whole,
)
from search.result import Answer, Asked, Result, TreeStats, answer_of, distinct, measure
from search.schedules import Unsized
from search.search import Body, Search
from search.strategy import Strategy
from search.streaming import Agreement, Piece
from search.tree import Chosen, SearchTree
from search.workbench import Workbench

if TYPE_CHECKING:
    from stores.base import Store

__all__ = ["Answer", "Piece", "Result", "Run", "RunRequest", "TreeStats"]


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Attributes:
        strategy: The strategy's name.
        params: Its parameters as on the wire.
        messages: The conversation to answer.
        continue_final: The last message is the beginning of the answer, the assistant's and in
            plain text: what is returned goes on from there.
        sampling: How to draw an answer; its `stop` and `max_tokens` bound the whole answer.
        seed: Where every random stream of the run comes from.
        limits: The most the run may spend.
        run_id: Names the run in events and replies.
        tenant: Whose request it is.
        answers: Distinct answers wanted back, best first; at least 1.
        prompt: The messages as the engine renders them, where somebody rendered them already.
        unsized: In place of the sampling's schedule, one that is sized by a pilot of this run;
            the result's `resolved` says what it came to.
    """

    strategy: str
    params: Mapping[str, Any]
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    seed: int
    limits: Limits = field(default_factory=Limits)
    run_id: str = ""
    tenant: str = ""
    answers: int = 1
    prompt: Prompt | None = None
    unsized: Unsized | None = None
    continue_final: bool = False

    @property
    def prefill(self) -> str:
        """The beginning of the answer; empty where there is none."""
        return str(self.messages[-1]["content"]) if self.continue_final else ""

    @property
    def asked(self) -> tuple[ChatMessage, ...]:
        """The conversation without it."""
        return self.messages[:-1] if self.continue_final else self.messages


_Item: TypeAlias = Piece | Result | BaseException


class Run:
    """One request on its way. Used once: either `stream` or `result`.

    Args:
        request: What to do.
        engine: Who generates.
        judge: Who judges; None without a reward model.
        further: The reward models that the strategy's parameters name, by id.
        store: What is shared between runs.
        clock: Seconds, monotonic.

    Attributes:
        tree: Everything grown so far; may be read and followed while the run is on.
        budget: What was spent so far; its time begins when the run is first awaited.
        store_errors: What the store failed at and was done without.

    Raises:
        StrategyNotFound: Nobody registered the strategy.
        ParamsError: A parameter it does not have, or a value it refuses.
        MissingRewardModel: It judges and there is no judge.
        UnsupportedByEngine: The engine lacks a capability it requires, or cannot honour an option
            of the sampling.
    """

    def __init__(
        self,
        request: RunRequest,
        *,
        engine: Engine,
        judge: RewardModel | None = None,
        further: Mapping[str, RewardModel] | None = None,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._strategy = make_strategy(request.strategy, request.params)
        check_fit(self._strategy, engine.info, judge)
        self._further = _named_judges(self._strategy, further or {})
        nominal = _nominal(request, engine)
        check_sampling(self._strategy, engine, nominal, is_begun=request.continue_final)
        self.request = request
        self.tree = SearchTree(prefill=request.prefill)
        self.budget = Budget(request.limits, clock=clock)
        self._engine = engine
        self._judge = judge
        self._store = store
        self.store_errors: list[str] = []
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._is_used = False

    async def result(self) -> Result:
        """Run to the end.

        Raises:
            BudgetExhausted: Nothing was produced before the budget or the time was used up.
            EngineError: What the engine raised.
            RewardError: What the judge raised.
        """
        async with aclosing(self._go(is_live=False)) as items:
            async for item in items:
                if isinstance(item, Result):
                    return item
        raise BrokenContract("the run ended without a result")

    async def stream(self) -> AsyncGenerator[Piece | Result]:
        """Text as soon as it is decided, then the result.

        The texts of the pieces, joined, are `Result.answers[0].content`. Closing the generator
        cancels every branch and gives all claims back before it returns.

        Raises:
            BudgetExhausted: Nothing was produced before the budget or the time was used up.
            EngineError: What the engine raised.
            RewardError: What the judge raised.
        """
        async with aclosing(self._go(is_live=True)) as items:
            async for item in items:
                yield item

    async def _go(self, *, is_live: bool) -> AsyncGenerator[Piece | Result]:
        if self._is_used:
            raise BrokenContract("a run is used once; make another")
        self._is_used = True
        self.budget.begin()  # whoever waited for a place has all of its time left
        work = asyncio.create_task(self._work(is_live=is_live))
        work.add_done_callback(self._ended)
        try:
            while True:
                item = await self._items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Result):
                    return
        finally:
            work.cancel()
            await asyncio.wait([work])
            self.tree.close("cancelled")

    def _ended(self, work: asyncio.Task[Result]) -> None:
        """Hand over how the work ended, whoever ended it."""
        if work.cancelled():
            self.tree.close("cancelled")
            self._items.put_nowait(asyncio.CancelledError())
            return
        error = work.exception()
        if error is not None:
            self.tree.close("error")
        self._items.put_nowait(error if error is not None else work.result())

    async def _work(self, *, is_live: bool) -> Result:
        bench = self._bench(is_live=is_live)
        try:
            prompt = self.request.prompt
            if prompt is None:
                prompt = self._engine.render(
                    self.request.messages, continue_final=self.request.continue_final
                )
            async with self.budget.in_time():
                root = await self._engine.open(prompt, tenant=self.request.tenant)
                bench.claims.open(self.tree.root, root)
            self.tree.prompt_tokens = prompt_size(root)
            await self._size(bench, root)
            search = Search(bench, self.budget, others=self._other)
            outcome = await search.carry_out(self._strategy.run)
            self.tree.prompt_tokens = prompt_size(root)  # an upstream counts when it answers
            self._conclude(bench, outcome)
            stats = measure(
                self.tree, root.cached_tokens, bench.claims.peak_tokens, bench.reused_nfe
            )
        finally:
            await bench.aclose()
        return self._result(bench, outcome, stats)

    async def _size(self, bench: Workbench, root: Prefix) -> None:
        """Make a schedule of one that is to follow the length of the answers."""
        unsized, sampling = self.request.unsized, self.request.sampling
        if unsized is None:
            return
        lengths = await pilot_lengths(
            self._engine,
            root,
            sampling,
            n=unsized.pilot,
            seed=self.request.seed,
            budget=self.budget,
        )
        schedule = unsized.sized(lengths)
        bench.sampling = replace(sampling, schedule=schedule)
        bench.notes[f"decay_tokens {schedule.decay_tokens}"] = None

    def _other(self, name: str, params: Mapping[str, Any]) -> Body:
        """The coroutine of a strategy that this one delegates to."""
        is_whole = reads_whole(self._strategy, self._judge)
        return body_of(name, params, self._engine.info, self._judge, is_whole=is_whole)

    def _conclude(self, bench: Workbench, outcome: Outcome) -> None:
        answers = distinct(outcome, self.request.answers)
        try:
            bench.agreement.conclude(outcome.chosen)
        except ValueError as err:
            raise BrokenContract(str(err)) from err
        self.tree.record(Chosen(tuple(one.branch.id for one in answers)))
        self.tree.close(outcome.stop_reason)

    def _result(self, bench: Workbench, outcome: Outcome, stats: TreeStats) -> Result:
        request = self.request
        answers = tuple(answer_of(one) for one in distinct(outcome, request.answers))
        stop_reason: StopReason = outcome.stop_reason
        return Result(
            run_id=request.run_id,
            strategy=request.strategy,
            resolved=": ".join(filter(None, (self._strategy.name, "; ".join(bench.notes)))),
            stop_reason=stop_reason,
            seed=request.seed,
            score=answers[0].score,
            spent=self.budget.spent,
            tree=stats,
            answers=answers,
            candidates=tuple(answer_of(one) for one in outcome.candidates),
            prompt_tokens=self.tree.prompt_tokens,
            ignored=tuple(bench.ignored),
            further=tuple(
                Asked(name, one.num_calls, one.num_tokens) for name, one in bench.further.items()
            ),
        )

    def _bench(self, *, is_live: bool) -> Workbench:
        request, engine, tree = self.request, self._engine, self.tree
        claims = ClaimBook()
        agreement = Agreement(tree.root, engine.decode, self._items.put_nowait)
        grower = Grower(engine, tree, claims, agreement, request.seed, is_live=is_live)

        def drop(branch: Branch) -> None:
            grower.release(branch)
            agreement.exclude([branch])

        def judging(judge: RewardModel, drop: Callable[[Branch], None]) -> Judging:
            return Judging(
                judge,
                messages=request.messages,
                prefill=request.prefill,
                tenant=request.tenant,
                delimiters=engine.info.step_delimiters,
                reads_whole=reads_whole(self._strategy, judge),
                tree=tree,
                drop=drop,
            )

        bench = Workbench(
            engine=engine,
            tree=tree,
            claims=claims,
            agreement=agreement,
            grower=grower,
            judging=None if self._judge is None else judging(self._judge, drop),
            further={name: judging(judge, _keep) for name, judge in self._further.items()},
            store=self._store,
            messages=request.asked,
            sampling=request.sampling,
            seed=request.seed,
            answers=request.answers,
            tenant=request.tenant,
            store_errors=self.store_errors,
        )
        has_seed = Capability.SEED in engine.info.capabilities
        if request.sampling.seed is not None and not has_seed:
            bench.ignored["seed"] = None
        return bench


def _keep(branch: Branch) -> None:
    """What a further judge cannot value stays what it is to the others."""


def _named_judges(
    strategy: Strategy[Params], known: Mapping[str, RewardModel]
) -> dict[str, RewardModel]:
    """The reward models that the parameters name.

    Raises:
        InvalidParameter: One of them is not known.
    """
    named = further_judges(strategy)
    for param, judge_id in named.items():
        if judge_id not in known:
            raise InvalidParameter(param, strategy.name, f"no reward model is called {judge_id!r}")
    return {judge_id: known[judge_id] for judge_id in named.values()}


def _nominal(request: RunRequest, engine: Engine) -> Sampling:
    """The sampling as far as it is known before the run: what an engine may refuse of it."""
    if request.unsized is None:
        return request.sampling
    schedule = request.unsized.sized([engine.info.context_tokens])
    return replace(request.sampling, schedule=schedule)
