"""Plugins by entry point: engines, strategies, reward models, stores, benches, drafters, denoisers.

The built-in ones go through the same door as everybody else's. Nothing is imported before its name
is asked for, so that a plugin with a missing dependency harms nobody who does not use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from search.errors import PluginError

GROUPS: Final = (
    "bough.engines",
    "bough.denoisers",
    "bough.strategies",
    "bough.reward_models",
    "bough.drafters",
    "bough.stores",
    "bough.benches",
)


class Plugins(Mapping[str, Any]):
    """The plugins of one group by name; a value is imported when it is looked up."""

    def __init__(self, group: str, points: Mapping[str, EntryPoint]) -> None:
        self.group = group
        self._points = points

    def __getitem__(self, name: str) -> Any:
        """The plugin itself.

        Raises:
            KeyError: Nothing has this name.
            PluginError: It cannot be imported.
        """
        point = self._points[name]
        try:
            return point.load()
        except (ImportError, AttributeError) as err:
            raise PluginError(self.group, name, str(err)) from err

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def where(self, name: str) -> str:
        """The `module:attribute` that a name stands for, without importing it."""
        return self._points[name].value


@cache
def load(group: str) -> Plugins:
    """Every plugin of a group, in order of name; installed packages are looked through once."""
    found = sorted(entry_points(group=group), key=lambda point: point.name)
    return Plugins(group, {point.name: point for point in found})
