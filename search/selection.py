"""Asking a model which of its own candidates is best, and reading what it says. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engines.base import ChatMessage

_TASK: Final = (
    "Above is a problem, and below are {count} candidate answers to it, numbered from 1. Compare "
    "them, and decide which one is best. End your reply with the line\n"
    "Best candidate: N\n"
    "where N is its number."
)
_VERDICT: Final = re.compile(r"best\s+candidate\W{0,6}(?:is\W{1,6})?(?:number\W{1,3})?(\d{1,4})")
_MENTION: Final = re.compile(r"candidate\W{0,3}(?:number\W{1,3})?(\d{1,4})")


def selection_question(
    messages: Sequence[ChatMessage], candidates: Sequence[str]
) -> tuple[ChatMessage, ...]:
    """The conversation with the candidates, and the question which is best, put to its end.

    They follow the last user's text, so that roles alternate as before and the beginning is the
    prompt that the engine has in its cache already.
    """
    listed = [f"Candidate {at}:\n{text.strip()}" for at, text in enumerate(candidates, 1)]
    question = "\n\n".join([_TASK.format(count=len(candidates)), *listed])
    last = messages[-1] if messages else {}
    if last.get("role") == "user" and isinstance(last.get("content"), str):
        return (*messages[:-1], {**last, "content": f"{last['content']}\n\n{question}"})
    return (*messages, {"role": "user", "content": question})


def named_candidate(reply: str, count: int) -> int | None:
    """The position of the candidate that a reply names; None where it names none, or several.

    The last "Best candidate: N" counts; without one, the only candidate mentioned by its number. A
    bare number is no name: it may be the model's own answer to the problem.

    Args:
        reply: What the model said.
        count: Candidates that it was shown.
    """
    text = reply.lower()
    verdicts = _VERDICT.findall(text)[-1:] or list(dict.fromkeys(_MENTION.findall(text)))
    if len(verdicts) != 1 or not 1 <= int(verdicts[0]) <= count:
        return None
    return int(verdicts[0]) - 1


def question_overhead(count: int) -> int:
    """Characters of the question beside the candidates' own."""
    return len(_TASK) + 20 * count
