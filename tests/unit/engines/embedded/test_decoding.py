"""Which branches share a row."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Sampling, TokenIds
from engines.embedded.decoding import rows_of
from engines.embedded.jobs import GenerateJob
from engines.embedded.sequence import Branch
from engines.textstop import TextTracker

P = 4
PAGES = (7, 9)


def branch(
    said: TokenIds = (), *, tenant: str = "", pages: tuple[int, ...] = PAGES, prompt: int = 10
) -> Branch:
    """A branch that has its prompt and `said`, all but the last token run."""
    made = Branch(
        tenant,
        tuple(range(prompt)),
        how=Sampling(),
        seed=0,
        response_start=prompt,
        limit=1000,
        stop_ids=frozenset(),
        tracker=TextTracker([b"x"] * 1000),
        job=cast("GenerateJob", None),
        index=0,
        order=(0, 0, 0),
    )
    made.shared_pages = pages
    for token in said:
        made.accept(token, 0.0, 1000)
    made.computed = len(made.tokens) - 1
    return made


def test_rows_are_numbered_by_their_first_branch() -> None:
    many = [branch((5,)), branch((6,)), branch((5,)), branch((6, 6)), branch((6,))]
    assert rows_of(many, P).tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    "other",
    [branch((5,), tenant="b"), branch((5,), pages=(7,)), branch((5,), pages=(7, 8))],
    ids=["tenant", "fewer pages", "other pages"],
)
def test_who_is_no_twin(other: Branch) -> None:
    assert rows_of([branch((5,)), other], P).tolist() == [0, 1]


def test_equal_keys_do_not_make_twins() -> None:
    """A key is a hash, and hashes collide."""
    one, other = branch((5, 6)), branch((6, 5))
    other.key = one.key
    assert rows_of([one, other], P).tolist() == [0, 1]


@given(st.lists(st.lists(st.integers(0, 2), max_size=3).map(tuple), min_size=1, max_size=30))
def test_twins_are_those_with_equal_tokens(said: list[TokenIds]) -> None:
    rows = rows_of([branch(one) for one in said], P).tolist()
    first = {one: rows[said.index(one)] for one in said}
    assert rows == [first[one] for one in said]
    assert len(set(first.values())) == len(first)
    assert list(dict.fromkeys(rows)) == list(range(len(first)))
