"""From an entry point's options to a drafter, and between a tenant's lessons and bytes."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from engines.drafters.errors import DrafterError
from engines.drafters.table import load

T = TypeVar("T")
MAX_SNAPSHOT_BYTES: Final = 8 * 1024 * 1024
"""The most that a snapshot may unpack to."""


def build(kind: Callable[..., T], vocab_size: int, options: Mapping[str, Any]) -> T:
    """A drafter with these options, each of the type of its default and above 0.

    `table`, where the drafter takes a base, is the path of a table to load.

    Raises:
        DrafterError: An option is unknown, of another type or not above 0; names it.
    """
    known = inspect.signature(kind).parameters
    given: dict[str, Any] = {"vocab_size": vocab_size} if "vocab_size" in known else {}
    for name, value in options.items():
        if name == "table" and "base" in known:
            given["base"] = load(Path(str(value)))
            continue
        if name not in known or name in ("vocab_size", "base"):
            names = sorted(set(known) - {"vocab_size", "base"})
            raise DrafterError(f"drafter option {name!r} is unknown; there are {names}")
        wanted = (int, float) if isinstance(known[name].default, float) else int
        if isinstance(value, bool) or not isinstance(value, wanted) or not value > 0:
            raise DrafterError(f"drafter option {name!r} must be a number above 0, not {value!r}")
        given[name] = value
    return kind(**given)


def pack(kind: str, lessons: Mapping[str, Any]) -> bytes:
    """Plain lists as bytes; no code is ever read back.

    Args:
        kind: The drafter and the number of its snapshots' form, which changes with what they hold.
        lessons: Lists of numbers by name.
    """
    return zlib.compress(json.dumps({"kind": kind, **lessons}).encode(), 1)


def unpack(kind: str, data: bytes, *lists: str) -> Mapping[str, Any]:
    """What `pack` was given; `lists` are the names that must be there.

    Raises:
        DrafterError: Damaged, too large, or of another kind.
    """
    opened = zlib.decompressobj()
    try:
        text = opened.decompress(data, MAX_SNAPSHOT_BYTES)
        found = json.loads(text) if opened.eof else None
    except (zlib.error, ValueError, RecursionError) as err:
        raise DrafterError(f"not a drafter's snapshot: {err}; drop it from the store") from err
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise DrafterError(f"not a snapshot of the drafter {kind!r}; drop it from the store")
    missing = [name for name in lists if not isinstance(found.get(name), list)]
    if missing:
        raise DrafterError(f"a snapshot of {kind!r} without {missing}; drop it from the store")
    return found
