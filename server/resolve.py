"""From a request on the wire to a run: which model, which strategy, which judge, which bounds.

Doors and precedence: the body's `bough` object, then the model's suffix (``model:strategy``), then
the model's default strategy. A name that nothing answers to is refused; nothing falls through.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from engines.base import ChatMessage, Prompt, Sampling
from engines.errors import ContextLengthExceeded, UnsupportedByEngine
from reward_models.base import RewardModel
from search.budget import Limits
from search.run import RunRequest
from search.schedules import Annealed, Unsized
from server import wire
from server.catalog import Catalog, Served
from server.errors import InvalidRequest
from server.settings import LimitSettings
from server.wire import Bough, Budget, ChatRequest, Return

_MAX_DRAWN_SEED: Final = 2**31
_MESSAGE_CHARS: Final = 32
"""What a template makes of a message beside its content takes about as long as so much text."""

_SIZING: Final = ("floor_ratio", "pilot")
"""Of a schedule: what sizes a decay that is not given."""

_MAX_INLINE_CHARS: Final = 16_384
"""Longer conversations are rendered in a thread: tokenising them would hold up every stream."""


@dataclass(frozen=True)
class Plan:
    """A request that can be run.

    Attributes:
        wire: The request as it came.
        served: The model.
        judge: The reward model, where there is one.
        judge_id: Its id.
        further: The reward models that the strategy's parameters name, by id.
        run: What to run.
        asked: The strategy as the request named it, or the one that took its place.
        ignored: Paths of what the request gave and nothing honours.
        is_reproducible: Whether an equal request may get the same answer: it fixes its seed, or
            draws nothing.
    """

    wire: ChatRequest
    served: Served
    judge: RewardModel | None
    judge_id: str | None
    further: Mapping[str, RewardModel]
    run: RunRequest
    asked: str
    ignored: tuple[str, ...]
    is_reproducible: bool

    @property
    def returns(self) -> Return:
        """What the reply carries beside the answer."""
        return _bough(self.wire).return_ or Return()


async def resolve(
    request: ChatRequest, catalog: Catalog, limits: LimitSettings, run_id: str
) -> Plan:
    """Look everything up and put the server's caps on it.

    Raises:
        ModelNotFound: No such model.
        StrategyNotFound: No such strategy, in the body or as a suffix.
        RewardModelNotFound: No such reward model.
        MissingRewardModel: None was named, and several fit the strategy.
        InvalidRequest: A value over the server's limits, a schedule that warms up as it goes, or
            the beginning of an answer that this model's engine cannot go on with.
        ContextLengthExceeded: The prompt leaves no room for an answer.
        PromptError: The model's template refuses the messages.
    """
    bough = _bough(request)
    served, suffix = catalog.find(request.model)
    asked = bough.strategy or suffix or served.settings.strategy
    catalog.strategy(asked)
    judge_id = bough.reward_model or catalog.usual_judge(served, asked)
    judge = None if judge_id is None else catalog.judge(judge_id)
    _check_caps(request, limits)
    params = _params(bough, served, asked, catalog.strategies[asked], limits.max_width)
    further = _further(catalog, asked, params)
    _check_token_ids(request, served)
    messages = tuple(_message(message) for message in request.messages)
    continues = wire.continues(request)
    prompt = await _rendered(served, messages, continues)
    seed = secrets.randbelow(_MAX_DRAWN_SEED) if request.seed is None else request.seed
    schedule = _schedule(request)
    run = RunRequest(
        strategy=asked,
        params=params,
        messages=messages,
        sampling=replace(
            _sampling(request, served),
            schedule=schedule if isinstance(schedule, Annealed) else None,
        ),
        seed=seed,
        limits=_limits(bough.budget or Budget(), limits),
        run_id=run_id,
        answers=request.n or 1,
        prompt=prompt,
        unsized=schedule if isinstance(schedule, Unsized) else None,
        continue_final=continues,
    )
    return Plan(
        wire=request,
        served=served,
        judge=judge,
        judge_id=judge_id,
        further=further,
        run=run,
        asked=asked,
        ignored=tuple(_ignored(request, served)),
        is_reproducible=request.seed is not None or request.temperature == 0,
    )


def _bough(request: ChatRequest) -> Bough:
    return request.bough or Bough()


def _params(
    bough: Bough, served: Served, asked: str, strategy: Any, max_width: int
) -> dict[str, Any]:
    """The body's parameters, over those of the settings for the default strategy.

    A width that the request did not name is no wider than the server allows.
    """
    default = served.settings.params if asked == served.settings.strategy else {}
    given = bough.params or {}
    params = {**default, **given}
    field = strategy.Params.model_fields.get("width")
    if field is not None and "width" not in given:
        usual = params.get("width", field.default)
        if isinstance(usual, int) and usual > max_width:
            params["width"] = max_width
    return params


def _further(catalog: Catalog, asked: str, params: Mapping[str, Any]) -> dict[str, RewardModel]:
    """The reward models that parameters name; a value of another type is refused later."""
    names = getattr(catalog.strategies[asked], "judge_params", ())
    given = {name: params[name] for name in names if isinstance(params.get(name), str)}
    return {
        judge_id: catalog.judge(judge_id, f"bough.params.{name}")
        for name, judge_id in given.items()
    }


def _message(message: wire.Message) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": wire.content_of(message)}


def _check_caps(request: ChatRequest, limits: LimitSettings) -> None:
    _check_cap(request.n, limits.max_n, "n")
    bough = _bough(request)
    width = (bough.params or {}).get("width")
    if isinstance(width, int):
        _check_cap(width, limits.max_width, "bough.params.width")
    returns = bough.return_ or Return()
    _check_cap(returns.candidates, limits.max_candidates, "bough.return.candidates")


def _check_cap(value: int | None, most: int, param: str) -> None:
    if value is not None and value > most:
        raise InvalidRequest(
            f"{param} is {value}; this server allows at most {most}",
            code="invalid_value",
            param=param,
        )


def _check_token_ids(request: ChatRequest, served: Served) -> None:
    """Refuse ids that the model does not have; a vocabulary of 0 is an unknown one."""
    size = served.engine.info.vocab_size
    given = {
        "logit_bias": map(int, request.logit_bias or {}),
        "stop_token_ids": request.stop_token_ids or (),
    }
    for param, ids in given.items():
        highest = max(ids, default=-1)
        if size and highest >= size:
            raise InvalidRequest(
                f"{param} names token {highest}; this model has 0 … {size - 1}",
                code="invalid_value",
                param=param,
            )


async def _rendered(
    served: Served, messages: tuple[ChatMessage, ...], continue_final: bool
) -> Prompt:
    """The prompt; refuses what cannot be answered before a stream has begun."""
    engine = served.engine
    size = sum(_MESSAGE_CHARS + len(str(message["content"])) for message in messages)
    render = partial(engine.render, messages, continue_final=continue_final)
    try:
        prompt = await asyncio.to_thread(render) if size > _MAX_INLINE_CHARS else render()
    except UnsupportedByEngine as err:
        if not continue_final:
            raise
        raise InvalidRequest(
            f"model {served.model_id!r} cannot go on with the assistant's message at the end: "
            "leave it out, or set continue_final_message to false for a turn of its own",
            code="unsupported_by_engine",
            param=f"messages[{len(messages) - 1}]",
        ) from err
    context_tokens = engine.info.context_tokens
    if isinstance(prompt, tuple) and len(prompt) >= context_tokens:
        raise ContextLengthExceeded(len(prompt), context_tokens)
    return prompt


def _sampling(request: ChatRequest, served: Served) -> Sampling:
    usual = Sampling()
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    return Sampling(
        temperature=_or(request.temperature, usual.temperature),
        top_p=_or(request.top_p, usual.top_p),
        top_k=max(0, _or(request.top_k, usual.top_k)),
        min_p=_or(request.min_p, usual.min_p),
        presence_penalty=_or(request.presence_penalty, usual.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, usual.frequency_penalty),
        repetition_penalty=_or(request.repetition_penalty, usual.repetition_penalty),
        logit_bias=bias,
        seed=request.seed,
        stop=wire.stops_of(request),
        stop_token_ids=frozenset(request.stop_token_ids or ()),
        max_tokens=_or(request.max_completion_tokens, request.max_tokens),
        min_tokens=_or(request.min_tokens, usual.min_tokens),
        ban_ids=served.engine.info.eos_ids if request.ignore_eos else usual.ban_ids,
        logprobs=_or(request.top_logprobs, 0) if request.logprobs else None,
        logps=bool(request.logprobs),
        drafter=_bough(request).drafter,
    )


def _schedule(request: ChatRequest) -> Annealed | Unsized | None:
    """The schedule asked for; its warm-up has the request's temperature, and greedy has none."""
    asked = _bough(request).schedule
    if asked is None or request.temperature == 0:
        return None
    given = asked.model_dump(exclude_none=True, exclude={"kind"})
    for name in _SIZING if asked.decay_tokens is not None else ():
        given.pop(name, None)
    base = _or(request.temperature, Sampling().temperature)
    kind = Unsized if asked.decay_tokens is None else Annealed
    try:
        return kind(**given, base=base)
    except ValueError as err:
        raise InvalidRequest(
            f"bough.schedule: {err}", code="invalid_value", param="bough.schedule.tau_min"
        ) from err


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value


def _limits(budget: Budget, caps: LimitSettings) -> Limits:
    """The request's bounds, no wider than the server's."""
    return Limits(
        generated_tokens=_least(budget.max_tokens, caps.max_generated_tokens),
        candidates=_least(budget.max_candidates, caps.max_candidates),
        reward_calls=_least(budget.max_reward_calls, caps.max_reward_calls),
        nfe=budget.max_nfe,
        wall_ms=_least(budget.deadline_ms, round(caps.max_run_s * 1000)),
    )


def _least(asked: int | None, cap: int) -> int:
    return cap if asked is None else min(asked, cap)


def _ignored(request: ChatRequest, served: Served) -> Iterator[str]:
    yield from wire.ignored(request)
    if request.ignore_eos and not served.engine.info.eos_ids:
        yield "ignore_eos"  # an upstream whose end tokens are not known cannot be kept from them
    schedule = _bough(request).schedule
    if schedule is not None and request.temperature == 0:
        yield "bough.schedule"  # greedy is greedy at any temperature
    elif schedule is not None and schedule.decay_tokens is not None:
        given = (name for name in _SIZING if getattr(schedule, name) is not None)
        yield from (f"bough.schedule.{name}" for name in given)
    both = (request.max_tokens, request.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        yield "max_tokens"
