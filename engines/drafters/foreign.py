"""What a replica wrote, read with suspicion: a snapshot may be of another bough, or of nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from engines.drafters.errors import DrafterError

_MOST_ID: Final = 0xFFFFFFFF
_MOST: Final = 1e9


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Lists of another form than this drafter's turn out in here, before anything is learnt.

    Raises:
        DrafterError: They did.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError) as err:
        what = f"a snapshot of {kind!r} of another form: {err}; drop it from the store"
        raise DrafterError(what) from err


def token_ids(found: object) -> list[int]:
    """Token ids, of whatever vocabulary.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(found, (list, tuple)) or not all(
        type(one) is int and 0 <= one < _MOST_ID for one in found
    ):
        raise ValueError(f"{str(found)[:60]} are no token ids")
    return list(found)


def weights_of(ids: object, weights: object) -> dict[int, float]:
    """Numbers from 0 on by token id, from two lists.

    Raises:
        ValueError: They are something else, or of different lengths.
    """
    return dict(zip(token_ids(ids), numbers(weights), strict=True))


def numbers(found: object) -> list[float]:
    """Numbers from 0 to 1e9: weights and counts.

    Raises:
        ValueError: They are something else; not a number is not a number.
    """
    if not isinstance(found, (list, tuple)) or not all(
        type(one) in (int, float) and 0.0 <= one < _MOST for one in found
    ):
        raise ValueError(f"{str(found)[:60]} are no weights")
    return [float(one) for one in found]
