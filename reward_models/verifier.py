r"""A judge without weights: checks the arithmetic that an answer writes down.

It reads equations such as ``12 + 30 = 42``, ``3*4/2=6`` and ``2 + 3 = 5 = 10 / 2`` and computes
both sides of every ``=`` as exact fractions (7/2=3.5 is right, 10/3=3.33 is not). The value of an
answer is the share of its equations that hold; a step is worth 1 when all its equations hold, 0
when one does not. What has no equation is worth `NEUTRAL`, so that neither silence nor chatter
looks right or wrong. Bare numbers on every side (``5=5``), or repeated, are not counted.

Numbers may have thousands commas and decimals; operators are + - * / and their typographic forms,
x between spaces or digits, and ``\times``, ``\cdot``, ``\div``; ``$`` is skipped; any other
character, a line's end included, ends the equation. An equation belongs to the step in which it
ends. The last number of an unfinished answer may still grow, so the equation that ends there waits.

It does not know whether an equation is the right one for the question, and reads no algebra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.errors import RewardLoadError, RewardUnavailable

NEUTRAL: Final = 0.5

_MAX_DIGITS: Final = 40
_MAX_DEPTH: Final = 20
_MAX_SYMBOLS: Final = 400  # of one equation; longer ones are no sums
_SYMBOL: Final = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"|(?P<times>[*\u00d7\u00b7]|\\times|\\cdot|(?<=[\d\s)])[xX](?=[\s\d(]))"
    r"|(?P<over>[/\u00f7]|\\div)"
    r"|(?P<plus>\+)|(?P<minus>[-\u2212])|(?P<open>\()|(?P<close>\))|(?P<equals>=)"
    r"|(?P<space>[ \t$])|(?P<other>.)",
    re.DOTALL,
)
_BINDING: Final = "^_!%<>&|~"
_BULLET: Final = re.compile(r"^[ \t]*[-+*][ \t]+", re.MULTILINE)


class Symbol(NamedTuple):
    """One piece of an equation: its kind, its text, and where it ends in the answer."""

    kind: str
    text: str
    end: int


class Equation(NamedTuple):
    """One ``=``: where its right side ends, and whether both sides are equal."""

    end: int
    holds: bool


class _NotASum(Exception):
    """The symbols are no arithmetic that is read here."""


class VerifierJudge:
    """Scores answers by the equations in them; see the module's docstring."""

    def __init__(self, model_id: str) -> None:
        self.info = RewardInfo(model_id, RewardKind.VERIFIER, reads_whole=False)
        self._is_closed = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing; the question is not read."""
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """The share of equations that hold, and a value for each step."""
        if self._is_closed:
            raise RewardUnavailable(f"reward model {self.info.model_id!r} was closed")
        return [judged(candidate) for candidate in batch]

    def stats(self) -> RewardStats:
        """All zero: there is no cache."""
        return RewardStats()

    async def aclose(self) -> None:
        """Further scores raise RewardUnavailable."""
        self._is_closed = True


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> VerifierJudge:
    """The verifier for settings; `model` is not read.

    Raises:
        RewardLoadError: There are options; it has none.
    """
    if options:
        raise RewardLoadError(f"{model_id}: unknown option {min(options)!r}; verifier has none")
    return VerifierJudge(model_id)


def judged(candidate: Candidate) -> Score:
    """The score of one candidate."""
    text = candidate.text
    found = list(equations(text))
    if not candidate.is_finished:
        found = [equation for equation in found if equation.end < len(text.rstrip(" \t$"))]
    edges = [0, *accumulate(len(step) for step in candidate.steps)]
    steps = tuple(
        _all_hold([equation.holds for equation in found if start < equation.end <= end])
        for start, end in pairwise(edges)
    )
    value = sum(equation.holds for equation in found) / len(found) if found else NEUTRAL
    return Score(value, steps)


def equations(text: str) -> Iterator[Equation]:
    """The equations of a text, in order."""
    # Blanks keep the places of the bullets, so that "- 3+4=7" is not about minus three.
    plain = _BULLET.sub(lambda match: " " * len(match.group()), text)
    for run in _runs(plain):
        sides = list(_sides(run))
        is_sum = any(side is not None and len(side) > 1 for side in sides)
        for left, right in pairwise(sides):
            if left is None or right is None:
                continue
            try:
                holds = _value(left) == _value(right)
            except _NotASum:
                continue
            except ZeroDivisionError:
                holds = False
            is_repetition = holds and len(left) == len(right) == 1
            if is_sum and not is_repetition:
                yield Equation(right[-1].end, holds)


def _all_hold(answers: list[bool]) -> float:
    return float(all(answers)) if answers else NEUTRAL


def _runs(text: str) -> Iterator[list[Symbol]]:
    """Stretches of symbols that may be one chain of equations.

    Where a stretch touches a letter or an operator that is not read here (``2^3=8``, ``7%``), a
    void symbol stands on that side, and voids it.
    """
    run: list[Symbol] = []
    binds = False
    for match in _SYMBOL.finditer(text):
        kind = str(match.lastgroup)
        if kind == "space":
            binds = binds and match.group() != " "
            continue
        if kind == "other":
            binds = match.group().isalpha() or match.group() in _BINDING
            if run and binds and (run[-1].end == match.start() or match.group() in _BINDING):
                run.append(Symbol("void", match.group(), match.end()))
            yield run
            run = []
            continue
        if run and run[-1].kind in ("number", "close") and kind in ("number", "open"):
            yield run
            run = []
        if binds:
            run.append(Symbol("void", "", match.start()))
            binds = False
        run.append(Symbol(kind, match.group(), match.end()))
    yield run


def _sides(run: list[Symbol]) -> Iterator[list[Symbol] | None]:
    """What stands between the equals signs; None for what is too long to be a sum."""
    side: list[Symbol] = []
    for symbol in [*run, Symbol("equals", "=", -1)]:
        if symbol.kind != "equals":
            side.append(symbol)
            continue
        yield side if 0 < len(side) <= _MAX_SYMBOLS else None
        side = []


def _value(side: list[Symbol]) -> Fraction:
    value, rest = _sum(side, 0, 0)
    if rest != len(side):
        raise _NotASum
    return value


def _sum(side: list[Symbol], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _product(side, at, depth)
    while at < len(side) and side[at].kind in ("plus", "minus"):
        term, after = _product(side, at + 1, depth)
        value = value + term if side[at].kind == "plus" else value - term
        at = after
    return value, at


def _product(side: list[Symbol], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _operand(side, at, depth)
    while at < len(side) and side[at].kind in ("times", "over"):
        factor, after = _operand(side, at + 1, depth)
        value = value * factor if side[at].kind == "times" else value / factor
        at = after
    return value, at


def _operand(side: list[Symbol], at: int, depth: int) -> tuple[Fraction, int]:
    if at >= len(side) or depth > _MAX_DEPTH:
        raise _NotASum
    symbol = side[at]
    if symbol.kind == "number" and len(symbol.text) <= _MAX_DIGITS:
        return Fraction(symbol.text.replace(",", "")), at + 1
    if symbol.kind == "minus":
        value, after = _operand(side, at + 1, depth + 1)
        return -value, after
    if symbol.kind == "open":
        value, after = _sum(side, at + 1, depth + 1)
        if after < len(side) and side[after].kind == "close":
            return value, after + 1
    raise _NotASum
