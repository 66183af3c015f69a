"""Which saplings are bundled, and what each one's ``bough.json`` says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def bundled(kind: str | None = None) -> dict[str, Path]:
    """Directories of the bundled saplings by id: by ``place``, then by the names of directories.

    Args:
        kind: ``generator``, ``process`` or another kind of ``bough.json``; None takes all.

    Raises:
        ValueError: a ``bough.json`` cannot be read or lacks its id, or its place is no number.
    """
    found = [(path.parent, describe(path.parent)) for path in sorted(_HERE.glob("*/bough.json"))]
    found.sort(key=lambda one: float(one[1].get("place", math.inf)))
    return {str(about["id"]): path for path, about in found if kind in (None, about.get("kind"))}


def describe(directory: Path) -> dict[str, Any]:
    """What a sapling's ``bough.json`` says: id, kind, task, step delimiters and so on.

    Raises:
        ValueError: the file is missing, is not a JSON object, or lacks ``id``.
    """
    path = directory / "bough.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("id"), str):
        raise ValueError(f"{path} is not an object with a string 'id'")
    return about
