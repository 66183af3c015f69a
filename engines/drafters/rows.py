"""Rows of weighted successors: an LRU that is learnt, over a frozen table that is shared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from engines.drafters.foreign import weights_of

NO_TOKEN: Final = 0xFFFFFFFF
"""Stands before a bigram's token where a trigram has its first."""
_MOST_KEY: Final = NO_TOKEN << 32 | NO_TOKEN


def pair(first: int, second: int) -> int:
    """The key of the row of what follows two tokens."""
    return first << 32 | second


def single(token: int) -> int:
    """The key of the row of what follows one token."""
    return NO_TOKEN << 32 | token


class Frozen(Protocol):
    """A table that nobody changes."""

    def row(self, key: int) -> Mapping[int, float] | None:
        """Weights by successor, or None."""


class Rows:
    """At most `max_rows` rows of at most `row_cap` weights, least recently *written* out first.

    A row is copied from `base` when it is first written; `base` itself never changes.
    """

    def __init__(self, max_rows: int, row_cap: int, base: Frozen | None = None) -> None:
        self.max_rows = max_rows
        self.row_cap = row_cap
        self._base = base
        self._rows: OrderedDict[int, dict[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: int) -> Mapping[int, float] | None:
        """The learnt row, else the base's; not to be changed. Keeps the order of eviction."""
        row: Mapping[int, float] | None = self._rows.get(key)
        return self._base.row(key) if row is None and self._base is not None else row

    def items(self) -> Iterator[tuple[int, Mapping[int, float]]]:
        """Learnt rows, least recently written first."""
        yield from self._rows.items()

    def add(self, key: int, token: int, amount: float, most: float = float("inf")) -> None:
        """Raise one weight, to at most `most`."""
        row = self._own(key)
        row[token] = min(most, row.get(token, 0.0) + amount)
        self._cap(row, token)

    def put(self, key: int, row: Mapping[int, float]) -> None:
        """Replace a row; only its largest weights are kept."""
        kept = sorted(row.items(), key=lambda item: -item[1])[: self.row_cap]
        self._own(key)
        self._rows[key] = dict(kept)

    def dump(self, most: int = 20_000) -> list[list[Any]]:
        """The rows written last, as plain lists."""
        last = list(self._rows.items())[-most:]
        return [[key, list(row), [round(w, 6) for w in row.values()]] for key, row in last]

    def load(self, rows: Mapping[int, Mapping[int, float]]) -> None:
        """Take over rows of another's `dump` that were never written here."""
        for key, row in rows.items():
            if key not in self._rows:
                self.put(key, row)

    def _own(self, key: int) -> dict[int, float]:
        row = self._rows.get(key)
        if row is None:
            given = self._base.row(key) if self._base is not None else None
            row = dict(sorted((given or {}).items(), key=lambda item: -item[1])[: self.row_cap])
            if len(self._rows) >= self.max_rows:
                self._rows.popitem(last=False)
            self._rows[key] = row
        else:
            self._rows.move_to_end(key)
        return row

    def _cap(self, row: dict[int, float], newest: int) -> None:
        """Evict the smallest weight; never the one just raised, or nothing new could come in."""
        if len(row) > self.row_cap:
            del row[min((token for token in row if token != newest), key=row.__getitem__)]


def read_rows(dumped: Sequence[Sequence[Any]]) -> dict[int, dict[int, float]]:
    """What `Rows.dump` gave, for `Rows.load`.

    Raises:
        ValueError, TypeError: It gave something else.
    """
    found = {key: weights_of(ids, weights) for key, ids, weights in dumped}
    if not all(type(key) is int and 0 <= key <= _MOST_KEY for key in found):
        raise ValueError("keys of rows are two token ids in 64 bits")
    return found
