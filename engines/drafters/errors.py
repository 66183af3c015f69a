"""What a drafter can refuse.

EngineError
└── DrafterError          an option, a saved table or shared rows that cannot be used
"""

from __future__ import annotations

from engines.errors import EngineError


class DrafterError(EngineError):
    """An option or a table that cannot be used; names it and what to change."""
