"""What followed the last few tokens, by those tokens, and how far each such estimate is trusted.

A *context* is a tuple of the last tokens, the newest last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

from engines.base import TokenIds
from engines.drafters.foreign import numbers, token_ids, weights_of
from engines.drafters.rows import Frozen, pair, single

FULLNESS: Final = 8
"""Kinds of counts that are trusted differently."""
_BASE_SIGHTINGS: Final = 16.0  # what a row of a base table weighs against counts
_MANY: Final = 64.0  # sightings after which all are halved: a row follows what is said now
_REMEMBERED: Final = 400.0  # cases after which those that trust rests on are halved
_UNKNOWN: Final = 1e-3  # probability of a token that nothing proposed
_RARE: Final = 0.01  # verified successors below this are not kept

Voice: TypeAlias = tuple[int, Mapping[int, float], float]
"""Whose estimate it is (its number in `Trust`), weights by token, and what makes them shares."""
ReadRow: TypeAlias = tuple[TokenIds, dict[int, float], dict[int, float]]
"""A context, sightings by successor, verified probabilities."""


class Row:
    """What is known of one context.

    Attributes:
        weights: Sightings by successor.
        total: Their sum.
        scale: 1 / total.
        kind: How full it is and whether it is sure, below `FULLNESS`.
        verified: The model's own probabilities when it last stood here; empty where it did not.
    """

    __slots__ = ("kind", "scale", "total", "verified", "weights")

    def __init__(
        self, weights: dict[int, float], verified: Mapping[int, float] | None = None
    ) -> None:
        self.weights = weights
        self.verified: Mapping[int, float] = verified or {}
        self.total = sum(weights.values())
        self._weigh()

    def add(self, token: int, cap: int) -> None:
        """One more sighting; of more than `cap` successors the rarest goes."""
        weights = self.weights
        weights[token] = weights.get(token, 0.0) + 1.0
        self.total += 1.0
        if len(weights) > cap:
            rarest = min((one for one in weights if one != token), key=weights.__getitem__)
            self.total -= weights.pop(rarest)
        if self.total > _MANY:
            for one in weights:
                weights[one] *= 0.5
            self.total *= 0.5
        self._weigh()

    def _weigh(self) -> None:
        total = self.total
        seen = 0 if total < 2.0 else 2 if total < 3.0 else 4 if total < 6.0 else 6
        self.kind = seen + (len(self.weights) == 1)
        self.scale = 1.0 / total if total else 0.0


class Contexts:
    """At most `max_rows` rows by context, least recently written out first.

    Args:
        max_rows: How many.
        row_cap: Successors in a row.
        base: A table under contexts of one and two tokens; a row is copied when it is written.
    """

    def __init__(self, max_rows: int, row_cap: int, base: Frozen | None = None) -> None:
        self._max_rows = max_rows
        self._cap = row_cap
        self._base = base
        self._rows: OrderedDict[TokenIds, Row] = OrderedDict()
        self._read: dict[TokenIds, Row | None] = {}  # of the base

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, context: TokenIds) -> Row | None:
        """What was learnt, else the base's; not to be changed."""
        row = self._rows.get(context)
        return self._from_base(context) if row is None and self._base is not None else row

    def add(self, context: TokenIds, token: int) -> None:
        """One more sighting of `token` after `context`."""
        self._own(context).add(token, self._cap)

    def verify(
        self,
        context: TokenIds,
        lengths: Iterable[int],
        ids: Sequence[int],
        probs: Sequence[float],
    ) -> None:
        """The model's probabilities after `context`, and so after its last `lengths` tokens."""
        kept = {token: prob for token, prob in zip(ids, probs, strict=True) if prob >= _RARE}
        size = len(context)
        for length in lengths:
            if length <= size:
                self._own(context[size - length :]).verified = kept

    def dump(self, most: int) -> list[list[Any]]:
        """The rows written last, as plain lists."""
        return [
            [key, *_lists(row.weights), *_lists(row.verified)]
            for key, row in list(self._rows.items())[-most:]
        ]

    def load(self, rows: Iterable[ReadRow]) -> None:
        """Take over rows of another's `dump` not known here, as far as there is room."""
        for context, weights, verified in rows:
            if context not in self._rows and len(self._rows) < self._max_rows:
                counts = dict(islice(weights.items(), self._cap))
                self._rows[context] = Row(counts, verified)

    def _own(self, context: TokenIds) -> Row:
        row = self._rows.get(context)
        if row is not None:
            self._rows.move_to_end(context)
            return row
        given = self._from_base(context) if self._base is not None else None
        if len(self._rows) >= self._max_rows:
            self._rows.popitem(last=False)
        row = self._rows[context] = Row(dict(given.weights) if given else {})
        return row

    def _from_base(self, context: TokenIds) -> Row | None:
        if len(context) > 2 or self._base is None:
            return None
        if context not in self._read:
            if len(self._read) >= self._max_rows:
                self._read.clear()
            found = self._base.row(single(*context) if len(context) == 1 else pair(*context))
            heaviest = sorted((found or {}).items(), key=lambda item: -item[1])[: self._cap]
            weights = {token: weight * _BASE_SIGHTINGS for token, weight in heaviest}
            self._read[context] = Row(weights) if weights else None
        return self._read[context]


class Trust:
    """Which share of the probability each voice gets before those less specific are heard.

    Every token that comes is a case: a voice wins its responsibility for that token, one step of
    expectation maximisation.

    Args:
        first: Shares before any case.
        cases: How many cases those are worth.
    """

    def __init__(self, first: Sequence[float], cases: float = 4.0) -> None:
        self._won = [share * cases for share in first]
        self._cases = [cases] * len(first)
        self.shares = list(first)

    def mix(self, voices: Iterable[Voice], enough: float) -> dict[int, float]:
        """Probabilities by token; `voices` from the most specific one on.

        Voices that could change no probability by `enough` are not heard.
        """
        mixed: dict[int, float] = {}
        shares, left = self.shares, 1.0
        for number, weights, scale in voices:
            share = left * shares[number]
            if share >= enough:
                part = share * scale
                for token, weight in weights.items():
                    mixed[token] = mixed.get(token, 0.0) + part * weight
            left -= share
            if left < enough:
                break
        return mixed

    def learn(self, voices: Sequence[Voice], token: int) -> None:
        """`token` came where `voices` spoke, from the most specific one on."""
        below = _UNKNOWN
        for number, weights, scale in reversed(voices):
            share = self.shares[number]
            own = share * weights.get(token, 0.0) * scale
            mixed = own + (1.0 - share) * below
            won, cases = self._won[number] + own / mixed, self._cases[number] + 1.0
            if cases > _REMEMBERED:
                won, cases = won * 0.5, cases * 0.5
            self._won[number], self._cases[number] = won, cases
            self.shares[number] = won / cases
            below = mixed

    def dump(self) -> list[list[float]]:
        """Cases won and all cases, by voice."""
        return [[round(won, 6), round(n, 6)] for won, n in zip(self._won, self._cases, strict=True)]

    def load(self, dumped: Sequence[tuple[float, float]]) -> None:
        """Take over another's, where it rests on more cases."""
        for number, (won, cases) in enumerate(dumped[: len(self.shares)]):
            if cases > self._cases[number] and 0.0 < won < cases:
                self._won[number], self._cases[number] = won, cases
                self.shares[number] = won / cases


def read_rows(dumped: Sequence[Sequence[Any]]) -> list[ReadRow]:
    """What `Contexts.dump` gave, for `Contexts.load`.

    Raises:
        ValueError, TypeError: It gave something else.
    """
    return [
        (tuple(token_ids(key)), weights_of(ids, weights), weights_of(likely, probs))
        for key, ids, weights, likely, probs in dumped
    ]


def read_cases(dumped: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """What `Trust.dump` gave, for `Trust.load`.

    Raises:
        ValueError, TypeError: It gave something else.
    """
    return [(won, cases) for won, cases in map(numbers, dumped)]


def _lists(row: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(row), [round(weight, 6) for weight in row.values()]
