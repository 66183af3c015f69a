"""From a strategy's name and parameters on the wire to a strategy that may run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from engines.base import Capability, ChecksSampling, Engine, EngineInfo, Sampling
from engines.errors import UnsupportedByEngine
from reward_models.base import MultifurcationRewardModel, RewardModel
from search.base import Params
from search.errors import InvalidParameter, MissingRewardModel, StrategyNotFound, UnknownParameter
from search.plugins import load
from search.search import Body
from search.strategy import Strategy

_GROUP = "bough.strategies"
_OPTIONS = {
    "logprobs": Capability.LOGPROBS,
    "schedule": Capability.SCHEDULE,
    "drafter": Capability.DRAFTER,
    "constraint": Capability.CONSTRAINT,
}
"""Options of `Sampling`, and what an engine must be able to do to honour them."""


def strategy_class(name: str) -> type[Strategy[Params]]:
    """The class behind a strategy's name.

    Raises:
        StrategyNotFound: Nobody registered it.
        PluginError: It cannot be imported.
    """
    plugins = load(_GROUP)
    if name not in plugins:
        raise StrategyNotFound(name, plugins)
    found: type[Strategy[Params]] = plugins[name]
    return found


def make_strategy(name: str, params: Mapping[str, Any]) -> Strategy[Params]:
    """A strategy with validated parameters.

    Raises:
        StrategyNotFound: Nobody registered it.
        UnknownParameter: A parameter that it does not have.
        InvalidParameter: A value of the wrong type or out of bounds.
    """
    kind = strategy_class(name)
    try:
        checked = kind.Params.model_validate(dict(params))
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "params"
        if first["type"] == "extra_forbidden":
            fields = kind.Params.model_fields.items()
            known = [field.alias or title for title, field in fields]
            raise UnknownParameter(where, name, known) from err
        is_type = first["type"].endswith(("_type", "_parsing", "_from_float"))
        if first["type"] == "literal_error":  # also what a number gets where names are taken
            is_type = not isinstance(first["input"], str)
        why = f"{first['msg']}, got {first['input']!r:.80}"
        raise InvalidParameter(where, name, why, "type" if is_type else "value") from err
    return kind(checked)  # type: ignore[call-arg]  # strategies are built from their parameters


def check_fit(strategy: Strategy[Params], engine: EngineInfo, judge: RewardModel | None) -> None:
    """Refuse before any work what could not be carried to the end.

    Raises:
        UnsupportedByEngine: The engine lacks a capability that the strategy requires.
        MissingRewardModel: The strategy judges and there is no judge; or it needs one that values
            next tokens, of the engine's own vocabulary, and this is none.
        InvalidParameter: The aggregate is `model` and the judge cannot do that.
    """
    has = set(engine.capabilities)
    if Capability.TOKENS in has:  # whoever continues tokens continues text
        has.add(Capability.CONTINUE_TEXT)
    for capability in sorted(strategy.requires - has):
        raise UnsupportedByEngine(
            capability, engine.model_id, f"strategy {strategy.name!r} needs it; choose another"
        )
    if strategy.needs_judge and judge is None:
        raise MissingRewardModel(strategy.name, "it ranks its candidates by reward")
    if needs_next_rewards(strategy):
        _check_next_rewards(strategy.name, engine, judge)
    if judge is not None and not judge.info.reads_whole and reads_whole(strategy, judge):
        why = (
            f"reward model {judge.info.model_id!r} cannot read an answer as one step; choose "
            "last, min, prod or mean"
        )
        raise InvalidParameter("aggregate", strategy.name, why)


def further_judges(strategy: Strategy[Params]) -> dict[str, str]:
    """Ids of the reward models that its parameters name, by parameter."""
    values = {
        name: getattr(strategy.params, name) for name in getattr(strategy, "judge_params", ())
    }
    return {name: value for name, value in values.items() if value is not None}


def needs_next_rewards(strategy: object) -> bool:
    """Whether a strategy, or its class, reads the rewards of every next token."""
    return bool(getattr(strategy, "needs_next_rewards", False))


def _check_next_rewards(name: str, engine: EngineInfo, judge: RewardModel | None) -> None:
    if not isinstance(judge, MultifurcationRewardModel):
        kind = "" if judge is None else f"; {judge.info.model_id!r} is of kind {judge.info.kind}"
        raise MissingRewardModel(name, f"one that values every next token{kind}")
    if judge.info.tokenizer_hash != engine.tokenizer_hash:
        raise MissingRewardModel(
            name,
            f"one with the tokenizer of {engine.model_id!r}; {judge.info.model_id!r} has another",
        )


def reads_whole(strategy: Strategy[Params], judge: RewardModel | None) -> bool:
    """Whether the judge is to be shown answers as a single step: the aggregate is `model`."""
    if judge is None:
        return False
    return (getattr(strategy.params, "aggregate", None) or judge.info.aggregate) == "model"


def check_sampling(
    strategy: Strategy[Params], engine: Engine, how: Sampling, *, is_begun: bool = False
) -> None:
    """Refuse before any work the options that the engine could not honour.

    A strategy that continues answers draws them step by step, which not every option survives; nor
    does it where the request has begun the answer and the engine reads text only.

    Raises:
        UnsupportedByEngine: An option without its capability, or one that the engine refuses.
    """
    info = engine.info
    for option, capability in _OPTIONS.items():
        if getattr(how, option) is not None and capability not in info.capabilities:
            raise UnsupportedByEngine(option, info.model_id, "leave it out")
    is_begun = is_begun and Capability.TOKENS not in info.capabilities
    if is_begun or Capability.CONTINUE_TEXT in strategy.requires:
        how = replace(how, boundaries=info.step_delimiters, max_step_tokens=info.max_step_tokens)
    if isinstance(engine, ChecksSampling):
        engine.check_sampling(how)
    check = getattr(strategy, "check", None)
    if check is not None:
        check(engine, how)


def body_of(
    name: str,
    params: Mapping[str, Any],
    engine: EngineInfo,
    judge: RewardModel | None,
    *,
    is_whole: bool = False,
) -> Body:
    """The coroutine of a strategy that fits; what `Search.delegate` runs.

    Args:
        name: The strategy.
        params: Its parameters.
        engine: Who generates.
        judge: Who judges.
        is_whole: Whether the run shows answers to the judge as a single step.

    Raises:
        SearchError: As `make_strategy` and `check_fit`; InvalidParameter, too, for an aggregate
            that takes the judge's values another way than the run does.
        UnsupportedByEngine: As `check_fit`.
    """
    strategy = make_strategy(name, params)
    check_fit(strategy, engine, judge)
    wanted = getattr(strategy.params, "aggregate", None)
    if judge is not None and wanted is not None and (wanted == "model") != is_whole:
        why = f"{wanted!r} inside a run {'with' if is_whole else 'without'} the aggregate 'model'"
        raise InvalidParameter("aggregate", name, why)
    return strategy.run


def describe() -> list[dict[str, Any]]:
    """Every strategy as on the wire: name, description, JSON schema of its parameters, needs."""
    described = []
    for name in load(_GROUP):
        kind = strategy_class(name)
        summary = (kind.__doc__ or "").strip().split("\n\n")[0]
        described.append(
            {
                "name": name,
                "description": " ".join(summary.split()),
                "params": kind.Params.model_json_schema(),
                "requires": sorted(kind.requires),
            }
        )
    return described
