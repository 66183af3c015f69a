r"""Final answers: how to find one in a text, and when two mean the same.

A leaf: it imports nothing of this project. Plain numbers, fractions and equal strings are decided
exactly and fast (a benchmark asks thousands of times); everything else goes to the `math-verify`
library. Its timeouts rest on signals, which only the main thread may use, so they are off;
expressions that could keep a computer algebra system busy (long ones, towers of exponents, large
factorials) are compared as text instead.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

ANSWER_PHRASES = (
    "The answer is",
    "The final answer is:",
    "Therefore, the final answer is",
)
"""Phrases that state a final answer.

Source: the finished test of the ETS reference code (github.com/SqueezeAILab/ETS, rebase.py).
"""

_STATED = re.compile(
    r"(?:the\s+(?:final\s+)?answer\s+is|(?:final\s+)?answer\s*:|####)"
    r"[ \t]*:?[ \t]*(?:\*\*)?([^\n]*)",
    re.IGNORECASE,
)
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3}(?![\d.]))?"
_NUMBERS = re.compile(rf"(?<![\w.]){_NUMBER}(?:\s*/\s*\d+)?(?!\w)")
_PLAIN = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?")
_WITH_UNIT = re.compile(rf"({_NUMBER}(?:\s*/\s*\d+)?)(?:\s*[%°]|,?\s+[A-Za-z]{{2,}}[A-Za-z ,]*)")
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("`", "`"),
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_SIMPLE_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_COSTLY = re.compile(r"(?:\^|\*\*)\s*\{?\s*[-+(]*(?:\d{4,}|\d+\s*(?:\^|\*\*))|\d{3,}\s*!|!\s*!")
_MAX_SYMBOLIC_CHARS = 120
_MAX_SYMBOLIC_POWERS = 6


def states_answer(text: str, phrases: Sequence[str] = ANSWER_PHRASES) -> bool:
    """Whether `text` contains one of `phrases`."""
    return any(phrase in text for phrase in phrases)


def extract_answer(text: str) -> str | None:
    r"""The final answer that a text states, cleaned of wrappers; None where there is none.

    The last ``\boxed{…}`` wins, then what follows the last "The answer is" (or "Answer:", or
    "####") on its line, then the last number of the text.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    for stated in reversed(_STATED.findall(text)):
        answer = _clean(stated)
        if answer:
            return _without_unit(answer)
    numbers = _NUMBERS.findall(text)
    return _clean(numbers[-1]) if numbers else None


def equivalent(a: str, b: str) -> bool:
    """Whether two extracted answers mean the same. Symmetric; works in any thread."""
    first, second = canonical(a), canonical(b)
    if first == second:
        return True
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return False
    if not (_is_symbolic(a) and _is_symbolic(b)):
        return False
    return _same_expression(*sorted((_clean(a), _clean(b))))


@lru_cache(maxsize=8192)
def canonical(answer: str) -> Fraction | str:
    """A key equal for answers that are the same number or the same text; exact and cheap."""
    text = _clean(answer)
    fraction = _SIMPLE_FRACTION.fullmatch(text)
    if fraction is not None:
        sign, above, below = fraction.groups()
        text = f"{sign}{above}/{below}"
    number = _plain_number(text)
    return number if number is not None else " ".join(text.split())


def _plain_number(text: str) -> Fraction | None:
    bare = (
        text.removesuffix("%")
        .removesuffix("\\")
        .strip()
        .removeprefix("\\$")
        .removeprefix("$")
        .strip()
    )
    found = _PLAIN.fullmatch(bare)
    if found is None:
        return None
    above, below = (Fraction(part.replace(",", "")) if part else None for part in found.groups())
    if above is None or below is None:
        return above
    return above / below if below else None


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    opened = text.index("{", start)
    depth = 0
    for position in range(opened, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return _clean(text[opened + 1 : position]) or None
    return None


def _clean(answer: str) -> str:
    text = _TEXT_COMMAND.sub(r"\1", answer).strip()
    before = None
    while text != before:
        before = text
        text = text.strip("*").rstrip(".,;:!").strip()
        for left, right in _WRAPPERS:
            if (
                len(text) > len(left) + len(right)
                and text.startswith(left)
                and text.endswith(right)
            ):
                text = text[len(left) : -len(right)].strip()
    return text


def _without_unit(answer: str) -> str:
    found = _WITH_UNIT.fullmatch(answer)
    return found.group(1) if found else answer


def _is_symbolic(answer: str) -> bool:
    """Whether a computer algebra system may look at it: it computes something, and cheaply."""
    return (
        len(answer) <= _MAX_SYMBOLIC_CHARS
        and answer.count("^") + answer.count("**") <= _MAX_SYMBOLIC_POWERS
        and not _COSTLY.search(answer)
        and bool(re.search(r"[\d\\=+*/^(){}]", answer))
    )


@lru_cache(maxsize=8192)
def _same_expression(a: str, b: str) -> bool:
    verify = _library().verify
    first, second = _parsed(a), _parsed(b)
    if not first or not second:
        return False
    both = ((first, second), (second, first))  # the library's comparison is not symmetric
    return any(verify(list(one), list(other), timeout_seconds=None) for one, other in both)


@lru_cache(maxsize=8192)
def _parsed(answer: str) -> tuple[Any, ...]:
    return tuple(_library().parse(f"${answer}$", parsing_timeout=None))


@lru_cache(maxsize=1)
def _library() -> Any:
    import math_verify  # costs a second and pulls a computer algebra system: only when needed

    # It warns that timeouts are off; that is deliberate (see the module's docstring).
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).addFilter(_is_not_about_timeouts)
    return math_verify


def _is_not_about_timeouts(record: logging.LogRecord) -> bool:
    return "Timeout is disabled" not in str(record.msg)
