"""The request on the wire: OpenAI's chat completion, unchanged, plus the `bough` object.

Every field that OpenAI's schema has is honoured, or listed in the reply's `bough.ignored`, or
refused with 400 `unsupported_parameter`; a field that nobody knows is 400 `unknown_parameter`.
Nothing is dropped in silence. Null means "not given" everywhere, as OpenAI's clients send it.

What this does not do: look anything up. Names of models, strategies and reward models are checked
by `server.resolve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from server.errors import InvalidRequest, near

MAX_SEED: Final = 2**63 - 1

_MAX_STOPS: Final = 64
_MAX_STOP_CHARS: Final = 1024
"""Matching keeps every beginning of every stop string: memory grows with the square of this."""

_STRICT: Final = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0, le=MAX_SEED)]
Positive = Annotated[int, Field(ge=1, le=MAX_SEED)]
Temperature = Annotated[float, Field(gt=0, le=2)]


class Budget(BaseModel):
    """Bounds of the whole run; the server's own caps hold beside them."""

    model_config = _STRICT
    max_tokens: Positive | None = None
    max_candidates: Positive | None = None
    max_reward_calls: Count | None = None
    max_nfe: Count | None = None
    deadline_ms: Positive | None = None


class Return(BaseModel):
    """What the reply carries beside the answer."""

    model_config = _STRICT
    candidates: Count | None = None
    trace: Literal["none", "summary", "full"] | None = None
    events: bool | None = None


class Schedule(BaseModel):
    """Temperature by the position in the answer, for whatever strategy runs.

    Without `decay_tokens` the run draws `pilot` answers first and sizes the schedule by them.
    """

    model_config = _STRICT
    kind: Literal["annealed"]
    tau_max: Temperature | None = None
    tau_min: Temperature | None = None
    decay_tokens: Annotated[float, Field(gt=0)] | None = None
    warmup_tokens: Count | None = None
    floor_ratio: Annotated[float, Field(gt=0)] | None = None
    pilot: Annotated[int, Field(ge=1, le=64)] | None = None


class Bough(BaseModel):
    """The one namespaced object of a request."""

    model_config = _STRICT
    strategy: Annotated[str, Field(min_length=1)] | None = None
    params: dict[str, Any] | None = None
    reward_model: Annotated[str, Field(min_length=1)] | None = None
    drafter: Annotated[str, Field(min_length=1)] | None = None
    schedule: Schedule | None = None
    budget: Budget | None = None
    return_: Return | None = Field(default=None, alias="return")
    cache: bool | None = None


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of the conversation."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None


class StreamOptions(BaseModel):
    """What a stream carries beside the chunks."""

    model_config = _STRICT
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = _STRICT
    # honoured
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: str | list[str] | None = None
    n: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    bough: Bough | None = None
    # honoured though not OpenAI's: what vLLM's clients send
    top_k: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # accepted, and listed in bough.ignored
    metadata: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
    verbosity: Any = None
    # refused unless they say what holds anyway
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    web_search_options: Any = None


IGNORED: Final = (
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
"""Fields that change nothing here and are therefore listed in the reply."""

HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
"""Fields that are not built, with the values that ask for nothing that is not built."""


def parse(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises:
        InvalidRequest: It is not UTF-8, not JSON, or not a request that we can honour; names the
            field.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as err:
        raise InvalidRequest(
            f"the body is not UTF-8: byte {err.start} is wrong", code="invalid_json"
        ) from err
    try:
        request = ChatRequest.model_validate_json(text)
    except ValidationError as err:
        raise _refusal(err) from err
    _check_unsupported(request)
    _check_messages(request.messages)
    _check_together(request)
    _check_prefill(request)
    return request


def ignored(request: ChatRequest) -> Iterator[str]:
    """Paths of the fields that were given and change nothing."""
    yield from (name for name in IGNORED if getattr(request, name) is not None)
    for index, message in enumerate(request.messages):
        for name in ("name", "refusal", "reasoning", "reasoning_content", "annotations"):
            if getattr(message, name):
                yield f"messages[{index}].{name}"
    options = request.stream_options
    for name in ("include_obfuscation", "continuous_usage_stats"):
        if options is not None and getattr(options, name):
            yield f"stream_options.{name}"


def continues(request: ChatRequest) -> bool:
    """Whether the last message is the beginning of the answer.

    It is when the assistant says it, unless the request asks for a turn of its own in vLLM's words.
    """
    begins_turn = request.add_generation_prompt or request.continue_final_message is False
    return request.messages[-1].role == "assistant" and not begins_turn


def content_of(message: Message) -> str:
    """A message's text, its parts joined."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(part.text or "" for part in message.content)


def stops_of(request: ChatRequest) -> tuple[str, ...]:
    """The stop strings, however they were given."""
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())


def _check_unsupported(request: ChatRequest) -> None:
    for name, harmless in HARMLESS.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise _unsupported(name)


def _check_messages(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if message.role in ("tool", "function"):
            raise _unsupported(f"{at}.role", f"role {message.role!r}")
        for name in ("audio", "function_call", "tool_calls", "tool_call_id"):
            if getattr(message, name):
                raise _unsupported(f"{at}.{name}")
        if message.content is None:
            raise InvalidRequest(
                f"{at}.content is missing: give a string or text parts",
                code="invalid_type",
                param=f"{at}.content",
            )
        if not isinstance(message.content, str):
            _check_parts(message.content, f"{at}.content")


def _check_parts(parts: Sequence[Part], at: str) -> None:
    for index, part in enumerate(parts):
        if part.type != "text":
            raise _unsupported(f"{at}[{index}].type", f"content of type {part.type[:50]!r}")
        if part.text is None:
            raise InvalidRequest(
                f"{at}[{index}].text is missing", code="invalid_type", param=f"{at}[{index}].text"
            )


def _check_together(request: ChatRequest) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest(
            "top_logprobs needs logprobs: true", code="invalid_value", param="top_logprobs"
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "stream_options needs stream: true", code="invalid_value", param="stream_options"
        )
    stops = stops_of(request)
    lengths = [len(stop) for stop in stops]
    if len(stops) > _MAX_STOPS or not all(stops) or sum(lengths) > _MAX_STOP_CHARS:
        raise InvalidRequest(
            f"stop takes up to {_MAX_STOPS} strings, none of them empty, and {_MAX_STOP_CHARS} "
            "characters in all",
            code="invalid_value",
            param="stop",
        )
    for token in request.logit_bias or {}:
        if not (token.isascii() and token.isdigit() and len(token) < 16):
            raise InvalidRequest(
                f"logit_bias maps token ids to biases; {token[:50]!r} is no token id",
                code="invalid_value",
                param="logit_bias",
            )


def _check_prefill(request: ChatRequest) -> None:
    """Refuse contradictions about where the answer begins, and a beginning without text."""
    goes_on, begins = request.continue_final_message, request.add_generation_prompt
    at = f"messages[{len(request.messages) - 1}]"
    role = request.messages[-1].role

    def refuse(param: str, why: str) -> InvalidRequest:
        return InvalidRequest(why, code="invalid_value", param=param)

    if goes_on and begins:
        why = "an answer goes on or begins: not both continue_final_message and "
        raise refuse("continue_final_message", why + "add_generation_prompt")
    if goes_on and role != "assistant":
        why = f"the last message is the {role}'s; only an assistant's can be continued"
        raise refuse("continue_final_message", why)
    if begins is False and (goes_on is False or role != "assistant"):
        why = "without add_generation_prompt the last message must be an assistant's to go on with"
        raise refuse("add_generation_prompt", why)
    if continues(request) and not content_of(request.messages[-1]).strip():
        why = f"{at} begins the answer without any text: give it some, or leave the message out"
        raise refuse(f"{at}.content", why)


def _unsupported(param: str, what: str | None = None) -> InvalidRequest:
    return InvalidRequest(
        f"{what or param} is not supported by this server: leave it out",
        code="unsupported_parameter",
        param=param,
    )


_CONSTRAINTS: Final = (
    "literal_error",
    "enum",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "too_short",
    "too_long",
    "string_too_short",
    "finite_number",
    "int_parsing_size",
)


def _refusal(err: ValidationError) -> InvalidRequest:
    """The most telling of pydantic's errors, in our words."""
    problem = _deepest(err.errors(include_url=False))
    kind = problem["type"]
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {problem['msg']}", code="invalid_json")
    param = _path(problem)
    if kind == "extra_forbidden":
        known = _siblings(problem["loc"])
        message = f"unknown parameter {param!r}{near(str(problem['loc'][-1]), known)}"
        return InvalidRequest(message, code="unknown_parameter", param=param)
    if kind == "missing":
        return InvalidRequest(f"{param} is missing", code="missing_required_parameter", param=param)
    is_value = kind in _CONSTRAINTS
    if kind == "literal_error":  # also what a number gets where names are taken
        is_value = isinstance(problem["input"], str)
    code = "invalid_value" if is_value else "invalid_type"
    return InvalidRequest(f"{param or 'the body'}: {problem['msg']}", code=code, param=param)


def _deepest(problems: list[ErrorDetails]) -> ErrorDetails:
    """The first problem, or what is wrong further inside the same field.

    A list with a bad item is first of all no string, where both are taken.
    """
    first = _path(problems[0]) or ""
    same = [one for one in problems if (_path(one) or "").startswith(first)]
    return max(same, key=lambda one: len(one["loc"]))


def _path(problem: ErrorDetails) -> str | None:
    """OpenAI-style path, such as messages[0].content; branch names of unions left out."""
    path = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(("list[", "function-", "constrained-")) and part not in _UNIONS:
            path += f".{part}" if path else part
    return path or None


_UNIONS: Final = ("str", "int", "float", "bool", "[key]")


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The fields that may stand where an unknown one stood."""
    owners: dict[tuple[str, ...], type[BaseModel]] = {
        ("messages",): Message,
        ("stream_options",): StreamOptions,
        ("bough",): Bough,
        ("bough", "budget"): Budget,
        ("bough", "schedule"): Schedule,
        ("bough", "return"): Return,
    }
    above = tuple(part for part in loc[:-1] if isinstance(part, str))
    fields = owners.get(above, ChatRequest).model_fields
    return [field.alias or name for name, field in fields.items()]
