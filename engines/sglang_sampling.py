"""Our sampling options as SGLang's, and what it cannot honour. Pure functions.

SGLang knows no answer beyond one request: its penalties and `min_new_tokens` count from the
request's first token. So each request is told what is left of `min_tokens`, and earlier tokens of
the answer enter a frequency penalty as a bias, which is the same sum. A presence penalty cannot be
split in this way, and its repetition penalty leaves the prompt out, so both are refused where they
would come out wrong.

A client's own logit processor is never passed on: it is a pickle.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from engines.base import Constraint, EngineInfo, Sampling, TokenIds
from engines.child import TokenChild
from engines.errors import UnsupportedByEngine

MAX_STOPS: Final = 32
BAN: Final = -1e4
"""Added to a banned token's logit: out of reach at any temperature, and finite in every dtype."""

_GREEDY_BELOW: Final = 1e-6
_PENALTIES: Final = ("presence_penalty", "frequency_penalty")


def check(how: Sampling, info: EngineInfo, position: int) -> None:
    """Refuse what would be ignored or come out wrong.

    Args:
        how: What is asked.
        info: Of the engine that is asked.
        position: In the answer, of the first token to be drawn.

    Raises:
        UnsupportedByEngine: Naming the option, and what to do instead.
    """

    def refuse(option: str, why: str) -> None:
        raise UnsupportedByEngine(option, info.model_id, why)

    if how.drafter is not None:
        refuse("drafter", "SGLang drafts by its own launch options; leave it out")
    if how.repetition_penalty != 1.0:
        refuse("repetition_penalty", "SGLang's leaves the prompt out; use frequency_penalty")
    for name in _PENALTIES:
        if not -2 <= getattr(how, name) <= 2:
            refuse(name, "SGLang takes -2 … 2")
    if how.presence_penalty and (position or how.schedule is not None):
        refuse(
            "presence_penalty",
            "SGLang counts it within one request, and this answer takes several: use "
            "frequency_penalty, or a strategy that draws whole answers",
        )
    if how.constraint is not None and (position or how.schedule is not None):
        refuse(
            "constraint",
            "SGLang begins a grammar with each request, and this answer takes several: use a "
            "strategy that draws whole answers",
        )
    for token in (*how.logit_bias, *how.ban_ids):
        if not 0 <= token < info.vocab_size:
            refuse("logit_bias", f"token {token} is not in 0 … {info.vocab_size - 1}")
    barred = how.ban_ids | (info.eos_ids if how.min_tokens else frozenset())
    if len(barred) >= info.vocab_size:
        refuse("ban_ids", f"all {info.vocab_size} tokens are banned: allow some")


def draws_from_the_model(how: Sampling, position: int, *, is_raw: bool) -> bool:
    """Whether SGLang's own logps are those of the model at temperature 1.

    It reports what it drew from: after temperature, bias, penalties, bans and grammar, but before
    top_p, top_k and min_p. At temperature 0, and where `is_raw`, the temperature is left out.
    """
    temperatures = [how.temperature]
    if how.schedule is not None:
        temperatures = [value for _, value in how.schedule.segments(MAX_STOPS)]
    is_changed = (
        how.logit_bias
        or how.ban_ids
        or how.presence_penalty
        or how.frequency_penalty
        or how.constraint is not None
        or how.min_tokens > position
    )
    return not is_changed and (
        is_raw or all(value == 1.0 or value < _GREEDY_BELOW for value in temperatures)
    )


def request_params(
    child: TokenChild,
    how: Sampling,
    *,
    answer: TokenIds,
    room: int,
    temperature: float,
    seed: int | None,
    vocab_size: int,
) -> dict[str, Any]:
    """SGLang's `sampling_params` for the next request of `child`.

    Args:
        child: What is drawn, by checked options.
        how: They.
        answer: The answer's tokens before this request.
        room: The most tokens to draw.
        temperature: In force during this request.
        seed: The child's stream; None where the server has none.
        vocab_size: Ids from there on are not sent.
    """
    params: dict[str, Any] = {
        "temperature": temperature,
        "top_p": how.top_p,
        "top_k": how.top_k or -1,
        "min_p": how.min_p,
        "max_new_tokens": room,
        "stop_token_ids": sorted(token for token in child.stop_ids if 0 <= token < vocab_size),
        "frequency_penalty": how.frequency_penalty,
        "presence_penalty": how.presence_penalty,
    }
    if child.min_tokens_left:
        params["min_new_tokens"] = min(child.min_tokens_left, room)
    else:
        params["stop"] = _stops(how)
    if bias := _bias(how, answer):
        params["logit_bias"] = {str(token): value for token, value in bias.items()}
    if seed is not None:
        params["sampling_seed"] = seed & (2**63 - 1)
    if how.constraint is not None:
        params |= constraint_params(how.constraint)
    return params


def temperature_at(how: Sampling, position: int, max_pieces: int) -> tuple[float, int | None]:
    """The temperature in force at `position`, and the position where the next one begins."""
    if how.schedule is None:
        return how.temperature, None
    pieces = sorted(how.schedule.segments(max_pieces))
    now = pieces[0][1]
    for start, value in pieces:
        if start > position:
            return now, start
        now = value
    return now, None


def _stops(how: Sampling) -> list[str]:
    """Strings on which the server may stop early; what ends the answer is found on our side."""
    wanted = dict.fromkeys((*how.stop, *how.boundaries))
    return [text for text in wanted if text and _is_unicode(text)][:MAX_STOPS]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: it never occurs, and no JSON can carry it
        return False
    return True


def _bias(how: Sampling, answer: TokenIds) -> dict[int, float]:
    bias = dict(how.logit_bias)
    if how.frequency_penalty:
        for token, count in Counter(answer).items():
            bias[token] = bias.get(token, 0.0) - how.frequency_penalty * count
    for token in how.ban_ids:
        bias[token] = BAN
    return bias


def constraint_params(constraint: Constraint) -> dict[str, str]:
    """A grammar in SGLang's words; a schema is sent as text."""
    if constraint.json_schema is not None:
        return {"json_schema": json.dumps(constraint.json_schema)}
    if constraint.regex is not None:
        return {"regex": constraint.regex}
    return {"ebnf": constraint.grammar or ""}
