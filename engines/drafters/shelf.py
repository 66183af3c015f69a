"""The drafters of one engine by name, each made when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from engines.base import EngineInfo
from engines.drafters.base import Drafter
from engines.drafters.errors import DrafterError
from engines.drafters.table import load
from engines.errors import UnsupportedByEngine

GROUP: Final = "bough.drafters"
TABLE_FILE: Final = "drafts.npz"
"""A model directory's own table."""

_FROM_TABLE: Final = frozenset({"adaptive", "reference_aded"})


class Shelf:
    """Drafters over one vocabulary.

    Args:
        model_id: Of the engine, for errors.
        vocab_size: Of the engine.
        tokenizer_hash: Of the engine; a table must have the same.
        table: Where `adaptive` and `reference_aded` start from; None is from nothing.

    Raises:
        DrafterError: The table is damaged or of another tokenizer.
    """

    def __init__(
        self, model_id: str, vocab_size: int, tokenizer_hash: str, table: Path | None
    ) -> None:
        self._model_id = model_id
        self._vocab_size = vocab_size
        self._table = table
        self._made: dict[str, Drafter] = {}
        if table is not None:
            found = load(table).about.tokenizer_hash
            if found != tokenizer_hash:
                raise DrafterError(
                    f"{table} was built for tokenizer {found}, the model's is {tokenizer_hash}; "
                    "build it again with `bough drafts build`"
                )

    @classmethod
    def of_model(cls, info: EngineInfo, directory: Path, option: str) -> Shelf:
        """A served model's: from its directory's own table, unless an option names another.

        Raises:
            DrafterError: As the class.
        """
        table = Path(option) if option else directory / TABLE_FILE
        is_there = bool(option) or table.exists()
        return cls(info.model_id, info.vocab_size, info.tokenizer_hash, table if is_there else None)

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        """Plugins by name. Looking through all installed packages takes some milliseconds, and most
        engines are never asked for a drafter.
        """
        return {point.name: point for point in entry_points(group=GROUP)}

    def require(self, name: str) -> None:
        """Refuse a drafter that there is not.

        Raises:
            UnsupportedByEngine: No drafter has this name; names those there are.
        """
        if name not in self._points:
            known = ", ".join(sorted(self._points))
            raise UnsupportedByEngine("drafter", self._model_id, f"known are {known}")

    def __getitem__(self, name: str) -> Drafter:
        """The drafter, the same one every time.

        Raises:
            UnsupportedByEngine: No drafter has this name.
        """
        made = self._made.get(name)
        if made is None:
            self.require(name)
            has_table = self._table is not None and name in _FROM_TABLE
            options = {"table": str(self._table)} if has_table else {}
            made = self._made[name] = self._points[name].load()(self._vocab_size, options)
        return made

    def made(self) -> dict[str, Drafter]:
        """Those that somebody asked for, by name."""
        return dict(self._made)
