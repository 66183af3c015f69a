"""Confidence of an answer, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.confidence import (
    bar_of,
    confidence_of,
    group_confidences,
    token_confidences,
    window_for,
)

TOKENS = [4.0, 1.0, 1.0, 4.0, 7.0, 7.0]


def test_tokens() -> None:
    sure = ((5, math.log(0.8)), (6, math.log(0.1)), (7, math.log(0.1)))
    even = ((5, math.log(0.5)), (6, math.log(0.5)))
    found = token_confidences([sure, even, ()], 2)
    assert found == pytest.approx([-(math.log(0.8) + math.log(0.1)) / 2, math.log(2)])
    assert found[0] > found[1], "a peaked distribution has unlikely alternatives"
    assert token_confidences([((1, 0.0), (2, -math.inf))], 2) == [25.0]


def test_windows() -> None:
    assert group_confidences(TOKENS, 3).tolist() == [2, 2, 4, 6]
    assert group_confidences(TOKENS, 6).tolist() == [4]
    assert group_confidences(TOKENS, 100).tolist() == [4]
    assert group_confidences([], 3).tolist() == []


def test_measures() -> None:
    assert confidence_of(TOKENS, 3, "lowest") == 2
    assert confidence_of(TOKENS, 3, "tail") == 6
    assert confidence_of(TOKENS, 3, "mean") == 4
    assert confidence_of(TOKENS, 3, "bottom") == 2
    # a tenth of twenty windows are two of them
    assert confidence_of([float(at) for at in range(20)], 1, "bottom") == 0.5
    assert math.isnan(confidence_of([], 3, "mean"))


def test_the_bar() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert bar_of(values, 1.0) == 1
    assert bar_of(values, 0.5) == 3
    assert bar_of(values, 0.1) == 4.6
    assert bar_of([2.0], 0.1) == 2


def test_the_window_follows_the_answers() -> None:
    assert window_for([]) == 16
    assert window_for([30, 40, 50]) == 16
    assert window_for([800, 1600, 160000]) == 200
    assert window_for([32000] * 3) == 2048


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_against_the_definition(tokens: list[float], window: int) -> None:
    size = min(window, len(tokens))
    groups = [np.mean(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]
    assert group_confidences(tokens, window) == pytest.approx(groups, abs=2e-5)
    lowest, bottom = (confidence_of(tokens, window, one) for one in ("lowest", "bottom"))
    assert lowest == pytest.approx(min(groups), abs=2e-5)
    assert lowest <= bottom <= max(groups) + 2e-5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 50).map(lambda one: round(one, 5)), min_size=1), st.floats(0.01, 1))
def test_somebody_reaches_the_bar(values: list[float], keep_ratio: float) -> None:
    bar = bar_of(values, keep_ratio)
    reached = sum(value >= bar for value in values)
    assert reached >= max(1, math.floor(keep_ratio * (len(values) - 1)))
