"""The published behaviour: worked examples E1, E2 and E5, and what its search does with a table."""

from __future__ import annotations

from random import Random

import pytest

from engines.drafters.base import EMPTY
from engines.drafters.mcts import cut, drafted_paths, puct
from engines.drafters.reference_aded import CAP, STEP, ReferenceAded
from engines.drafters.rows import Rows, pair


def test_e1_rows() -> None:
    rows = Rows(10, 12)
    rows.put(pair(5, 7), {9: 0.75, 2: 0.25})
    rows.add(pair(5, 7), 9, STEP, CAP)
    rows.add(pair(5, 7), 4, STEP, CAP)
    row = rows.get(pair(5, 7))
    assert row is not None
    assert dict(row) == pytest.approx({9: 0.79, 2: 0.25, 4: 0.04}, abs=1e-5)
    total = sum(row.values())
    shares = {token: weight / total for token, weight in row.items()}
    assert shares == pytest.approx({9: 0.731481, 2: 0.231481, 4: 0.037037}, abs=1e-5)


def test_e1_the_cap_is_reached_after_57_updates() -> None:
    rows = Rows(10, 12)
    rows.put(pair(5, 7), {9: 0.75})
    weights = []
    for _ in range(58):
        rows.add(pair(5, 7), 9, STEP, CAP)
        weights.append((rows.get(pair(5, 7)) or {})[9])
    assert weights[55] < CAP
    assert weights[56] == weights[57] == CAP


@pytest.mark.parametrize(
    ("value", "prior", "c1", "expected"),
    [
        (1.0, 0.3, 1.814, 2.604459),
        (1.0, 0.3, 32.0, 12.687227),
        (2.7, 0.05, 1.814, 2.967410),
        (2.7, 0.05, 32.0, 4.647871),
    ],
)
def test_e2_puct(value: float, prior: float, c1: float, expected: float) -> None:
    assert puct(value, prior, 10, 150, c1, 8.0) == pytest.approx(expected, abs=1e-5)


def test_e5_cut() -> None:
    paths = [(1, 2, 3, 4), (1, 2, 3), (1, 2), (5,), (6, 7, 8, 9)]
    assert cut(paths, 8) == [(1, 2, 3), (1, 2), (5,)]


def test_paths_are_at_most_four_tokens_and_follow_the_table() -> None:
    table = {(a, b): {(b + 1) % 5: 0.75, (b + 2) % 5: 0.25} for a in range(5) for b in range(5)}
    paths = drafted_paths((0, 1), table.get, Random(1))
    assert max(map(len, paths)) == 4
    assert paths == drafted_paths((0, 1), table.get, Random(1))
    for path in paths:
        text = (0, 1, *path)
        assert all(text[i + 2] in table[text[i], text[i + 1]] for i in range(len(path)))


def test_the_root_is_one_of_the_24_paths_kept_and_drafts_nothing() -> None:
    rows = {(0, 1): {token: 1.0 for token in range(2, 62)}}
    paths = drafted_paths((0, 1), rows.get, Random(1))
    assert len(paths) == 23
    assert {len(path) for path in paths} == {1}


def test_without_a_hit_one_fixed_token_is_guessed() -> None:
    drafter = ReferenceAded(vocab_size=1000)
    assert drafter.propose((1, 2), 8, run="r", tenant="t").tokens == (100,)


def test_a_trigram_that_stays_in_the_window_counts_at_every_step() -> None:
    drafter = ReferenceAded(vocab_size=50)
    drafter.begin("r", (1, 2, 3), tenant="t")
    drafter.observe(EMPTY, (4,), (1, 2, 3), run="r", tenant="t")
    [first, second] = drafter._tenants["t"].dump()
    assert (first[0], first[1], first[2]) == (pair(1, 2), [3], [pytest.approx(0.08)])
    assert (second[0], second[1], second[2]) == (pair(2, 3), [4], [pytest.approx(0.04)])
