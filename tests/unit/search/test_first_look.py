"""What a few samples say about a question, by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.first_look import FirstLook, Stated, relative_confidences


def look_at(*answers: tuple[float, int] | tuple[float, int, float]) -> FirstLook:
    return FirstLook(tuple(Stated(*one) for one in answers), 4)


def test_four_that_agree_are_easy() -> None:
    look = look_at((4.0, 4))
    assert look.sure == pytest.approx(31 / 32)
    assert look.verdict(0.95, 0.6) == "easy"
    assert look.reason == "4 of 4 samples agree (96 % sure)"


def test_three_of_four_are_open_and_two_of_four_hard() -> None:
    assert look_at((3.0, 3), (1.0, 1)).verdict(0.95, 0.6) == "open"
    assert look_at((2.0, 2), (2.0, 2)).verdict(0.95, 0.6) == "hard"
    assert FirstLook((), 4).verdict(0.95, 0.6) == "hard"


def test_a_judge_may_decide() -> None:
    # odds 13/3 of the vote times 9 of the judge
    praised = look_at((3.0, 3, 0.9), (1.0, 1, 0.5))
    assert praised.sure == pytest.approx(39 / 40)
    assert praised.verdict(0.95, 0.6) == "easy"
    assert praised.reason == "3 of 4 samples agree, judged 0.90 (97 % sure)"
    doubted = look_at((4.0, 4, 0.02))
    assert doubted.sure == pytest.approx(31 / (31 + 49), abs=1e-5)
    assert doubted.verdict(0.95, 0.6) == "hard"


def test_a_judge_may_prefer_another_answer() -> None:
    look = look_at((2.0, 2, 0.2), (2.0, 2, 0.9))
    assert look.leading == 1
    assert look.sure == pytest.approx(0.9)
    # 1 to 3 has odds 3/13; 0.99 makes them 22.8
    look = look_at((3.0, 3, 0.02), (1.0, 1, 0.99))
    assert look.leading == 1
    assert look.sure == pytest.approx(297 / 310, abs=1e-5)


def test_confidence_shifts_a_vote() -> None:
    weights = relative_confidences([[math.log(0.9)] * 3, [math.log(0.3)], [], [math.log(0.6)]])
    assert weights == [1.5, 0.5, 1.0, 1.0]
    assert relative_confidences([]) == []
    assert relative_confidences([[-2000.0]]) == [1.0]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 4), st.none() | st.floats(0, 1)), min_size=1
    ),
    st.floats(0.51, 0.99),
    st.floats(0, 1),
)
def test_any_look_has_a_verdict(
    answers: list[tuple[float, int, float | None]], threshold: float, hard_below: float
) -> None:
    look = FirstLook(tuple(Stated(*one) for one in answers), 4)
    assert 0 <= look.sure <= 1
    assert (look.verdict(threshold, hard_below) == "easy") == (look.sure >= threshold)
    assert look.reason.isascii()
