"""Rows by context are bounded and follow what is said; trust goes to the voice that is right."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.drafters.contexts import FULLNESS, Contexts, Row, Trust, Voice, read_cases, read_rows

tokens = st.integers(0, 5)
contexts = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)


class Base:
    def row(self, key: int) -> dict[int, float] | None:
        return {1: 0.5, 2: 0.25} if key % 2 else None


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(contexts, tokens), max_size=80), st.integers(1, 6), st.integers(1, 3))
def test_contexts_are_bounded_and_the_least_recently_written_goes(
    done: list[tuple[tuple[int, ...], int]], max_rows: int, row_cap: int
) -> None:
    held = Contexts(max_rows, row_cap, Base())
    order: list[tuple[int, ...]] = []
    for context, token in done:
        held.add(context, token)
        order = [*(one for one in order if one != context), context][-max_rows:]
        row = held.get(context)
        assert row is not None
        assert token in row.weights
        assert len(row.weights) <= row_cap
        assert row.total == pytest.approx(sum(row.weights.values()))
        assert row.total * row.scale == pytest.approx(1.0)
        assert 0 <= row.kind < FULLNESS
    assert [tuple(entry[0]) for entry in held.dump(100)] == order
    copy = Contexts(max_rows, row_cap)
    copy.load(read_rows(held.dump(100)))
    assert copy.dump(100) == held.dump(100)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=60))
def test_a_row_counts(text: list[int]) -> None:
    row = Row({})
    for token in text:
        row.add(token, cap=6)
    assert row.weights == Counter(text)


def test_a_row_follows_what_is_said_now() -> None:
    row = Row({})
    for token in [1] * 200 + [2] * 60:
        row.add(token, cap=4)
    assert row.weights[2] > 2 * row.weights[1]


def test_verified_distributions_are_kept_for_every_length_and_rare_tokens_are_not() -> None:
    held = Contexts(10, 4)
    held.verify((1, 2), (3, 2, 1), (5, 6, 7), (0.9, 0.05, 0.001))
    for context in ((2,), (1, 2)):
        row = held.get(context)
        assert row is not None
        assert row.verified == {5: 0.9, 6: 0.05}
    assert len(held) == 2


def test_trust_goes_to_the_voice_that_is_right() -> None:
    """The first voice is right in nine of ten cases, the second in the rest."""
    trust = Trust((0.5, 0.5))
    voices: list[Voice] = [(0, {1: 1.0}, 1.0), (1, {2: 4.0}, 0.25)]
    for case in range(300):
        trust.learn(voices, 2 if case % 10 == 0 else 1)
    assert trust.shares[0] == pytest.approx(0.9, abs=0.02)
    mixed = trust.mix(voices, enough=0.0)
    assert mixed[1] == pytest.approx(0.9, abs=0.02)
    assert 0.0 < mixed[2] <= 1.0 - mixed[1]
    other = Trust((0.5, 0.5))
    other.load(read_cases(trust.dump()))
    assert other.shares == pytest.approx(trust.shares, abs=1e-5)


def test_voices_that_change_nothing_are_not_heard() -> None:
    trust = Trust((0.99, 0.5))
    assert trust.mix([(0, {1: 1.0}, 1.0), (1, {2: 1.0}, 1.0)], enough=0.02) == {1: 0.99}
