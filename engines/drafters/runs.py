"""What is kept by tenant and by run, both bounded, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `most` values by key; a missing one is made when asked for."""

    def __init__(self, most: int, make: Callable[[], V]) -> None:
        self.most = most
        self._make = make
        self._held: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, key: K) -> V:
        """The value, made where it is missing."""
        value = self._held.get(key)
        if value is None:
            if len(self._held) >= self.most:
                self._held.popitem(last=False)
            value = self._held[key] = self._make()
        else:
            self._held.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value if there is one; counts as a use."""
        return self[key] if key in self._held else None

    def drop(self, key: K) -> None:
        """Forget one key; idempotent."""
        self._held.pop(key, None)

    def values(self) -> Iterator[V]:
        """Everything held."""
        yield from self._held.values()
