import math

import pytest

from search.select import INVALID, aggregated, order_by_vote, rebase_counts, spread, vote


@pytest.mark.parametrize(
    ("how", "value"), [("last", 0.8), ("min", 0.5), ("prod", 0.4), ("mean", 0.65)]
)
def test_aggregated(how: str, value: float) -> None:
    assert aggregated((0.5, 0.8), how) == value  # type: ignore[arg-type]
    assert math.isnan(aggregated((), how))  # type: ignore[arg-type]


def test_no_rewards_get_nothing() -> None:
    assert rebase_counts([], 4, 0.2) == []
    assert rebase_counts([0.5, 0.5], 0, 0.2) == [0, 0]


def test_tiny_temperatures_do_not_overflow() -> None:
    assert rebase_counts([1.0, 0.9, 1.0], 5, 1e-6) == [3, 0, 2]


def test_votes_group_equivalent_answers() -> None:
    groups = vote(["1/2", "3", "0.5", None, "3.0", None], [1.0] * 6)
    assert [(one.answer, one.members) for one in groups] == [
        ("1/2", (0, 2)),
        ("3", (1, 4)),
        (INVALID, (3, 5)),
    ]
    assert order_by_vote(groups, [1.0, 2.0, 1.5, 1, 1, 1]) == [2, 0, 1, 4, 3, 5]


def test_ties_go_to_the_first_to_reach_the_total() -> None:
    # b reaches 0.3 with the third vote, a only with the fourth; 0.1 + 0.2 is 0.3 here
    groups = vote(["1", "2", "2", "1", "3"], [0.1, 0.1, 0.2, 0.2, 0.0])
    assert [one.answer for one in groups] == ["2", "1", "3"]


def test_symbolic_answers_share_a_group() -> None:
    groups = vote(["x+1", "2", "1+x", "x+1"], [1, 1, 1, 1])
    assert groups[0].members == (0, 2, 3)


def test_who_states_nothing_comes_last() -> None:
    groups = vote([None, "7", None, "5", None], [1.0, 0.1, 1.0, 0.2, 1.0])
    assert [one.answer for one in groups] == ["5", "7", INVALID]
    assert [one.weight for one in groups] == [0.2, 0.1, 3.0]
    assert order_by_vote(groups, [1.0, 0.1, 1.0, 0.2, 1.0]) == [3, 1, 0, 2, 4]
    assert [one.answer for one in vote([None, None], [1, 1])] == [INVALID]


def test_an_answer_that_reads_invalid_is_the_invalid_group() -> None:
    assert len(vote([INVALID, None], [1, 1])) == 1


def test_spread() -> None:
    assert spread(7, 3) == [3, 2, 2]
    assert spread(2, 3) == [1, 1, 0]
