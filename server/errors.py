"""What the server can refuse, and the one table from exception to wire.

ServerError
├── SettingsError            a setting that cannot be used; names where it came from
├── InvalidRequest           the request is malformed; carries the code and the field
├── NotFound                 a name that nothing answers to
│   ├── ModelNotFound        no such model
│   ├── RewardModelNotFound  no such reward model
│   └── RunNotFound          no such run, or its events have expired
├── BodyTooLarge             the body is over `limits.max_body_bytes`
├── Overloaded               too many runs and too many waiting; says when to come back
└── ShuttingDown             the server is going away

Exceptions of engines, search, reward models and stores know no HTTP; TABLE gives each its status,
type, code and param. A test fails when an exported exception has no row. What is not in the table
is a bug: the client gets an opaque message with an id, the log gets the traceback under the same
id.
"""

from __future__ import annotations

import difflib
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from engines import errors as engine_errors
from engines.base import Capability
from reward_models import errors as reward_errors
from search import errors as search_errors
from stores import errors as store_errors

log = logging.getLogger("bough.server")


class ServerError(Exception):
    """Anything the server raises on purpose."""


class SettingsError(ServerError):
    """A setting that cannot be used."""


class InvalidRequest(ServerError):
    """The request is malformed.

    Args:
        message: What is wrong, and what to change.
        code: OpenAI-style code, such as ``invalid_value``.
        param: The field's path, such as ``messages[0].role``.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class NotFound(ServerError):
    """A name that nothing answers to.

    Args:
        what: The kind of thing, as read by people.
        name: The name asked for.
        known: The names there are.
    """

    def __init__(self, what: str, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"{what} {name[:100]!r} does not exist{near(name, known)}")
        self.name = name


class ModelNotFound(NotFound):
    """No model has this id."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__("model", name, known)


class RewardModelNotFound(NotFound):
    """No reward model has this id.

    Args:
        name: The id asked for.
        known: Those there are.
        param: Where the request named it.
    """

    def __init__(self, name: str, known: Iterable[str], param: str = "bough.reward_model") -> None:
        super().__init__("reward model", name, known)
        self.param = param


class RunNotFound(NotFound):
    """No run has this id, or its events have expired."""

    def __init__(self, name: str) -> None:
        super().__init__("run", name)


class BodyTooLarge(ServerError):
    """The request's body is over the limit."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is larger than {max_bytes} bytes: send less")
        self.max_bytes = max_bytes


class Overloaded(ServerError):
    """Every place to run and every place to wait is taken."""

    def __init__(self, running: int, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"{running} runs are going and {waiting} wait: try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class ShuttingDown(ServerError):
    """The server is stopping and takes no new runs."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down: try again elsewhere")


@dataclass(frozen=True)
class WireError:
    """One error as the client sees it: an HTTP status and OpenAI's error object."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message that names what was probably meant, or what there is."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if matches:
        return ": did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if names:
        return ": there is " + ", ".join(repr(known_name) for known_name in names[:12])
    return ""


Said = str | None | Callable[[Any], str | None]
"""A fixed text, or one read from the exception."""

_OPAQUE: Final = "the server failed; the log has the details under id {id}"
_MAX_MESSAGE_CHARS: Final = 1000
_MAX_PARAM_CHARS: Final = 200
"""Messages and params quote the request, which may be long."""

_REQUEST: Final = "invalid_request_error"
_SERVER: Final = "server_error"


@dataclass(frozen=True)
class Row:
    """How one exception type looks on the wire.

    Attributes:
        status: HTTP status.
        type: OpenAI's error type.
        code: OpenAI-style code, fixed or read from the exception.
        param: The field at fault, likewise.
        message: What the client reads: the exception's own text, a fixed one, or None for an opaque
            one.
    """

    status: int
    type: str
    code: str | Callable[[Any], str]
    param: Said = None
    message: Said = str


def _bad(code: str | Callable[[Any], str], param: Said = None) -> Row:
    return Row(400, _REQUEST, code, param)


def _bug() -> Row:
    return Row(500, _SERVER, "internal_error", message=None)


def _gone(code: str, message: str) -> Row:
    return Row(503, _SERVER, code, message=message)


def _option(error: engine_errors.UnsupportedByEngine) -> str | None:
    if isinstance(error.capability, Capability):
        return "bough.strategy"  # what requires a capability; options go by their names
    if error.capability in ("schedule", "drafter"):
        return f"bough.{error.capability}"
    if error.capability == "ban_ids":
        return "ignore_eos"  # what asks for it on the wire
    return str(error.capability) if error.capability in _OPTIONS else "bough.strategy"


def _denoising(error: engine_errors.DenoiseError) -> str:
    """What is a field of the request itself is named so; all else is a strategy's parameter."""
    if error.param == "length":
        return "max_completion_tokens"
    is_field = error.param in ("messages", "temperature", "top_p", "top_k")
    return error.param if is_field else f"bough.params.{error.param}"


_OPTIONS: Final = (
    "temperature",
    "logprobs",
    "logit_bias",
    "top_k",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
)
"""Request fields that an engine may refuse under their own names."""


_BUDGET: Final = {
    "generated_tokens": "max_tokens",
    "candidates": "max_candidates",
    "reward_calls": "max_reward_calls",
    "nfe": "max_nfe",
    "wall_ms": "deadline_ms",
}
"""Wire names of what a budget limits."""


TABLE: Final[dict[type[Exception], Row]] = {
    # ours
    ServerError: _bug(),
    SettingsError: _bug(),
    InvalidRequest: _bad(lambda error: error.code, lambda error: error.param),
    NotFound: Row(404, _REQUEST, "not_found"),
    ModelNotFound: Row(404, _REQUEST, "model_not_found", "model"),
    RewardModelNotFound: Row(404, _REQUEST, "reward_model_not_found", lambda error: error.param),
    RunNotFound: Row(404, _REQUEST, "run_not_found", "run_id"),
    BodyTooLarge: Row(413, _REQUEST, "body_too_large"),
    Overloaded: Row(429, "rate_limit_error", "overloaded"),
    ShuttingDown: Row(503, _SERVER, "shutting_down"),
    # engines
    engine_errors.EngineError: _bug(),
    engine_errors.ModelLoadError: _bug(),
    engine_errors.PromptError: _bad("invalid_prompt", "messages"),
    engine_errors.ContextLengthExceeded: _bad("context_length_exceeded", "messages"),
    engine_errors.UnsupportedByEngine: _bad("unsupported_by_engine", _option),
    engine_errors.DenoiseError: _bad("invalid_value", _denoising),
    engine_errors.WrongLength: _bad("invalid_value", _denoising),
    engine_errors.UnknownKernel: _bad("invalid_value", _denoising),
    engine_errors.MaskInPrompt: _bad("invalid_prompt", _denoising),
    engine_errors.DeterministicKernel: _bad("invalid_value", _denoising),
    engine_errors.CapacityExceeded: _bad("capacity_exceeded", "messages"),
    engine_errors.EngineClosed: _gone(
        "engine_unavailable", "the model's engine is gone: try again elsewhere or later"
    ),
    engine_errors.EngineOverloaded: Row(429, "rate_limit_error", "overloaded"),
    engine_errors.UpstreamRefused: Row(502, _SERVER, "upstream_refused"),
    engine_errors.InvariantError: _bug(),
    # search
    search_errors.SearchError: _bug(),
    search_errors.StrategyNotFound: Row(
        404, _REQUEST, "strategy_not_found", lambda error: error.param
    ),
    search_errors.ParamsError: _bad("invalid_value", lambda error: error.param),
    search_errors.UnknownParameter: _bad("unknown_parameter", lambda error: error.param),
    search_errors.InvalidParameter: _bad(
        lambda error: "invalid_type" if error.kind == "type" else "invalid_value",
        lambda error: error.param,
    ),
    search_errors.MissingRewardModel: _bad("reward_model_required", lambda error: error.param),
    search_errors.BudgetExhausted: _bad(
        "budget_exhausted", lambda error: f"bough.budget.{_BUDGET[error.what]}"
    ),
    search_errors.PluginError: _bug(),
    search_errors.BrokenContract: _bug(),
    # reward models
    reward_errors.RewardError: _bug(),
    reward_errors.RewardLoadError: _bug(),
    reward_errors.RewardUnavailable: _gone(
        "reward_model_unavailable", "the reward model is gone: try again elsewhere or later"
    ),
    reward_errors.RewardInputError: _bad("invalid_prompt", "messages"),
    # stores
    store_errors.StoreError: _bug(),
    store_errors.StoreConfigError: _bug(),
    store_errors.StoreInputError: _bug(),
    store_errors.ValueTooLarge: _bug(),
    store_errors.StoreUnavailable: _gone(
        "store_unavailable", "shared state cannot be read now: try again later"
    ),
    store_errors.StoreClosed: _gone(
        "store_unavailable", "shared state cannot be read now: try again later"
    ),
}
"""Every exported exception. A subclass without a row takes that of its nearest ancestor."""


_BUSY: Final = (Overloaded, engine_errors.EngineOverloaded)
"""They say when to come back."""


def code_of(error: Exception) -> str:
    """The error's code, for counting."""
    return _read(_row(error).code, error) or "internal_error"


def describe(error: Exception) -> WireError:
    """The error as the client sees it; what is a bug of ours is logged here with its traceback."""
    row = _row(error)
    if row.message is None:
        log_id = uuid.uuid4().hex
        log.error("internal error %s", log_id, exc_info=error)
        message = _OPAQUE.format(id=log_id)
    else:
        message = _read(row.message, error) or type(error).__name__
    param = _read(row.param, error)
    return WireError(
        status=row.status,
        type=row.type,
        code=code_of(error),
        message=message[:_MAX_MESSAGE_CHARS],
        param=None if param is None else param[:_MAX_PARAM_CHARS],
        retry_after_s=error.retry_after_s if isinstance(error, _BUSY) else None,
    )


def _read(said: Said, error: Exception) -> str | None:
    return said(error) if callable(said) else said


def _row(error: Exception) -> Row:
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), _bug())
