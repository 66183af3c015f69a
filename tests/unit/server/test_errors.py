from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields

import pytest

import engines
import reward_models
import search
import server
import stores
from engines.errors import ContextLengthExceeded, EngineError, ModelLoadError, UnsupportedByEngine
from reward_models.errors import RewardLoadError
from search.budget import Limits
from search.errors import BudgetExhausted, InvalidParameter, UnknownParameter
from server.errors import TABLE, Overloaded, code_of, describe, near
from server.wire import Budget

INTERNAL = {"ClientGone", "ChatFailed"}
"""Exceptions that never meet a response: one ends in its route, one in the terminal's client."""


def exported() -> list[type[Exception]]:
    """Every exception class of the packages' errors modules, and of the server's modules."""
    found: set[type[Exception]] = set()
    names = [f"{package.__name__}.errors" for package in (engines, search, reward_models, stores)]
    names += [f"server.{module.name}" for module in pkgutil.iter_modules(server.__path__)]
    for name in names:
        module = importlib.import_module(name)
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Exception) and member.__module__ == name:
                found.add(member)
    return sorted(found, key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_every_exported_exception_has_a_row(kind: type[Exception]) -> None:
    assert kind.__name__ in INTERNAL or kind in TABLE


def test_all_five_trees_are_covered() -> None:
    roots = {kind.__name__ for kind in exported() if kind.__base__ is Exception}
    trees = {"EngineError", "SearchError", "RewardError", "StoreError", "ServerError"}
    assert roots - INTERNAL == trees


@pytest.mark.parametrize(
    "error",
    [
        ModelLoadError("/srv/models/x/config.json", "no key hidden_size"),
        RewardLoadError("/srv/models/x/head.safetensors is torn"),
        EngineError("/srv/secret"),
        RuntimeError("/srv/secret"),
        KeyError("/srv/secret"),
    ],
)
def test_bugs_and_paths_stay_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    wire = describe(error)
    assert (wire.status, wire.type, wire.code) == (500, "server_error", "internal_error")
    assert "/srv" not in wire.message
    assert "/srv" in caplog.text
    assert wire.message.rsplit(" ", 1)[1] in caplog.text


def test_what_the_client_can_mend_is_told_in_full() -> None:
    wire = describe(ContextLengthExceeded(5000, 512))
    assert (wire.status, wire.code, wire.param) == (400, "context_length_exceeded", "messages")
    assert "5000" in wire.message
    assert "512" in wire.message
    unknown = describe(UnknownParameter("widht", "beam", ["width"]))
    assert unknown.body()["error"]["param"] == "bough.params.widht"
    assert "'width'" in unknown.message
    kinds = {kind: InvalidParameter("width", "beam", "no", kind) for kind in ("type", "value")}
    assert {kind: code_of(error) for kind, error in kinds.items()} == {
        "type": "invalid_type",
        "value": "invalid_value",
    }


def test_what_is_used_up_has_its_name_on_the_wire() -> None:
    wire = describe(BudgetExhausted("wall_ms", 500, 1))
    assert (wire.code, wire.param) == ("budget_exhausted", "bough.budget.deadline_ms")
    assert "500 ms" in wire.message
    named = {
        (describe(BudgetExhausted(one.name, 1, 1)).param or "").removeprefix("bough.budget.")
        for one in fields(Limits)
    }
    assert named == set(Budget.model_fields)


def test_unsupported_names_the_option_or_the_strategy() -> None:
    for option in ("logprobs", "temperature", "presence_penalty"):
        assert describe(UnsupportedByEngine(option, "m")).param == option
    assert describe(UnsupportedByEngine("schedule", "m")).param == "bough.schedule"
    lacking = describe(UnsupportedByEngine("hidden_states", "m"))
    assert (lacking.code, lacking.param) == ("unsupported_by_engine", "bough.strategy")
    assert "hidden_states" in lacking.message


def test_overload_says_when_to_come_back() -> None:
    wire = describe(Overloaded(3, 4, 17))
    assert wire.headers() == {"Retry-After": "17"}
    assert wire.status == 429


def test_subclasses_without_a_row_take_their_ancestors() -> None:
    class Narrow(ContextLengthExceeded):
        pass

    assert describe(Narrow(2, 1)).code == "context_length_exceeded"


def test_near_names_the_likely_or_what_there_is() -> None:
    assert near("widht", ["width", "other"]) == ": did you mean 'width'?"
    assert near("zzz", ["b", "a"]) == ": there is 'a', 'b'"
    assert near("zzz", []) == ""
