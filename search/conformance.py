"""The laws that every strategy keeps, as checks that any implementation can run.

    for check in CHECKS:
        await check(subject)

A check raises `ContractBroken` where its law does not hold. Each makes its own engine and judge
and closes them. The checks say nothing of how good the answers are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from engines.base import Capability, ChatMessage, Engine, Sampling
from reward_models.base import RewardModel
from search.budget import Limits, Spend
from search.errors import BudgetExhausted, ParamsError
from search.registry import describe, make_strategy, strategy_class
from search.run import Piece, Result, Run, RunRequest
from search.tree import SearchTree, TreeEvent

_MAX_TURNS = 4000  # of the event loop; more than any run on a toy engine takes


class ContractBroken(AssertionError):
    """A strategy broke a law; the message says which, with what was seen."""


@dataclass(frozen=True)
class Subject:
    """The strategy under test.

    Attributes:
        name: Its registered name.
        make_engine: A new small engine each time, whose stats count claimed pages.
        make_judge: A new judge each time.
        params: Parameters to run it with.
        messages: A conversation that the engine can render.
        sampling: The request's sampling.
    """

    name: str
    make_engine: Callable[[], Engine]
    make_judge: Callable[[], RewardModel]
    params: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[ChatMessage, ...] = ({"role": "user", "content": "?"},)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=24))

    def request(self, seed: int = 7, limits: Limits | None = None) -> RunRequest:
        """A request for this strategy."""
        return RunRequest(
            strategy=self.name,
            params=self.params,
            messages=self.messages,
            sampling=self.sampling,
            seed=seed,
            limits=limits or Limits(),
            run_id="conformance",
        )


Check: TypeAlias = Callable[[Subject], Awaitable[None]]


@asynccontextmanager
async def _bench(subject: Subject) -> AsyncIterator[tuple[Engine, RewardModel]]:
    """An engine and a judge that must be free of claims in the end."""
    engine, judge = subject.make_engine(), subject.make_judge()
    try:
        yield engine, judge
        claimed = engine.stats().pages_claimed + judge.stats().pages_claimed
        _require(claimed == 0, f"{claimed} pages are still claimed after the run")
    finally:
        await engine.aclose()
        await judge.aclose()


async def same_seed_same_answer(subject: Subject) -> None:
    """Two runs with one seed are equal in everything but time; another run may be under way."""
    async with _bench(subject) as (engine, judge):
        alone = await Run(subject.request(), engine=engine, judge=judge).result()
        crowded, *_ = await asyncio.gather(
            *(Run(subject.request(seed), engine=engine, judge=judge).result() for seed in (7, 8, 9))
        )
    _require(_timeless(alone) == _timeless(crowded), f"{alone} differs from {crowded}")


async def streaming_changes_nothing(subject: Subject) -> None:
    """The pieces, joined, are the answer of the same run unstreamed, and so are their tokens."""
    async with _bench(subject) as (engine, judge):
        for seed in range(5):
            whole = await Run(subject.request(seed), engine=engine, judge=judge).result()
            items = [
                one async for one in Run(subject.request(seed), engine=engine, judge=judge).stream()
            ]
            pieces = [one for one in items if isinstance(one, Piece)]
            _require(isinstance(items[-1], Result), "the last item is not the result")
            text = "".join(piece.text for piece in pieces)
            ids = tuple(one for piece in pieces for one in piece.token_ids)
            answer = whole.answers[0]
            _require(text == answer.content, f"streamed {text!r}, answered {answer.content!r}")
            _require(ids == answer.token_ids, f"streamed {ids}, answered {answer.token_ids}")


async def a_beginning_is_gone_on_with(subject: Subject) -> None:
    """What the request wrote of the answer is prompt and no content, streamed or not."""
    begun = ({**subject.messages[-1], "role": "assistant", "content": "a"},)
    asked = replace(subject.request(), messages=(*subject.messages, *begun), continue_final=True)
    async with _bench(subject) as (engine, judge):
        prompt = engine.render(asked.messages, continue_final=True)
        run = Run(asked, engine=engine, judge=judge)
        whole = await run.result()
        if isinstance(prompt, tuple):
            _require(whole.prompt_tokens == len(prompt), f"{whole.prompt_tokens} tokens of prompt")
        texts = [
            one.text
            async for one in Run(asked, engine=engine, judge=judge).stream()
            if isinstance(one, Piece)
        ]
        answer = whole.answers[0]
        _require("".join(texts) == answer.content, f"{texts} streamed, {answer.content!r} answered")
        chosen = run.tree.branch(answer.branch)
        _require(chosen.whole_text == "a" + answer.content, f"{chosen.whole_text!r} in the tree")


async def cancelling_frees_everything(subject: Subject) -> None:
    """However many turns of the event loop a run had, cancelling it leaves no claim."""
    for turns in range(1, _MAX_TURNS):
        async with _bench(subject) as (engine, judge):
            run = Run(subject.request(), engine=engine, judge=judge)
            task = asyncio.create_task(run.result())
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                return
            task.cancel()
            await asyncio.wait([task])
            _require(task.cancelled() or task.exception() is None, "cancelling raised an error")
            _require(run.tree.is_closed, "a cancelled run left its tree open")
    raise ContractBroken(f"the run took more than {_MAX_TURNS} turns of the event loop")


async def closing_the_stream_frees_everything(subject: Subject) -> None:
    """A consumer may leave after any piece."""
    for num_items in range(_MAX_TURNS):
        async with _bench(subject) as (engine, judge):
            run = Run(subject.request(), engine=engine, judge=judge)
            seen = 0
            async with aclosing(run.stream()) as items:
                async for _ in items:
                    if seen == num_items:
                        break
                    seen += 1
            _require(run.tree.is_closed, "a closed run left its tree open")
        if seen < num_items:
            return


async def budgets_hold(subject: Subject) -> None:
    """No limit is exceeded; what was produced is returned; nothing at all is BudgetExhausted."""
    amounts = (0, 1, 2, 3, 5, 8, 13, 40)
    denoises = Capability.DENOISE in strategy_class(subject.name).requires
    spent_on_denoising = ("nfe",) if denoises else ()
    for name in ("generated_tokens", "candidates", "reward_calls", *spent_on_denoising):
        for amount in amounts:
            await _holds(subject, name, amount)


async def _holds(subject: Subject, name: str, amount: int) -> None:
    limits = Limits(**{name: amount})
    async with _bench(subject) as (engine, judge):
        run = Run(subject.request(limits=limits), engine=engine, judge=judge)
        try:
            result = await run.result()
        except BudgetExhausted:
            texts = [branch.text for branch in run.tree.branches]
            _require(not any(map(str.strip, texts)), f"{texts} were produced, none was returned")
            result = None
        spent = getattr(run.budget.spent, name)
        _require(spent <= amount, f"{spent} {name} were spent of {amount}")
        if result is not None and any(one.text.strip() for one in run.tree.branches):
            _require(bool(result.answers[0].content.strip()), f"no content with {limits}")


async def the_tree_replays(subject: Subject) -> None:
    """Events are JSON, numbered from 0, and lead to the snapshot."""
    async with _bench(subject) as (engine, judge):
        run = Run(subject.request(), engine=engine, judge=judge)
        result = await run.result()
        written = [json.loads(json.dumps(event.to_json())) for event in run.tree.events()]
        events = [TreeEvent.from_json(one) for one in written]
        _require([one.number for one in events] == list(range(len(events))), "gaps in the events")
        picture = run.tree.snapshot()
        _require(SearchTree.replay(events) == picture, "replaying gives another snapshot")
        _require(picture["chosen"][0] == result.answers[0].branch, "another branch was chosen")
        followed = [event.number async for event in run.tree.follow()]
        _require(followed == list(range(len(events))), "following an ended run misses events")


async def parameters_are_described_and_checked(subject: Subject) -> None:
    """The schema describes every parameter; unknown names and wrong types are refused."""
    (described,) = [one for one in describe() if one["name"] == subject.name]
    _require(bool(described["description"]), "there is no description")
    fields: dict[str, dict[str, Any]] = described["params"].get("properties", {})
    json.dumps(described)
    for name, one in fields.items():
        _require(bool(one.get("description")), f"parameter {name} is not described")
        _refused(subject.name, {name: object()})
    _refused(subject.name, {"no_such_parameter": 1})
    width = fields.get("width", {}).get("default", 1)
    _require(width <= 16, f"the default width is {width}; at most 16")


def _refused(name: str, params: dict[str, Any]) -> None:
    try:
        make_strategy(name, params)
    except ParamsError as err:
        (given,) = params
        _require(err.param == f"bough.params.{given}", f"{err.param} named for {given}")
        return
    raise ContractBroken(f"{params} was accepted")


def _timeless(result: Result) -> Result:
    # What was drafted depends on what the engine's drafter has learnt by then.
    spent: Spend = replace(result.spent, wall_ms=0, drafted_tokens=0, accepted_tokens=0)
    # The peak depends on how far children happen to be when others land.
    return replace(
        result, spent=spent, tree=replace(result.tree, peak_kv_tokens=0, cached_tokens=0)
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ContractBroken(what)


CHECKS: Final[tuple[Check, ...]] = (
    same_seed_same_answer,
    streaming_changes_nothing,
    a_beginning_is_gone_on_with,
    cancelling_frees_everything,
    closing_the_stream_frees_everything,
    budgets_hold,
    the_tree_replays,
    parameters_are_described_and_checked,
)
