"""Countdown numbers: any allowed expression counts, and nothing else does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tasks import countdown
from models.tasks.base import solution_of

PROBLEM = countdown.Problem("text", (), "(25-7)*4", (3, 7, 25, 4), 72)


@given(seed=st.integers(min_value=0, max_value=10**6))
def test_reference_solution_is_right(seed: int) -> None:
    problem = countdown.draw(random.Random(seed))
    assert countdown.is_right(problem, solution_of(problem))
    assert problem.target not in problem.numbers
    assert 4 <= len(problem.numbers) <= 6


@pytest.mark.parametrize(
    ("expression", "is_right"),
    [
        ("(25-7)*4", True),
        ("4 * (25 - 7) = 72", True),
        ("(25-7)\u00d74", True),
        ("(25-7)*4+3-3", False),
        ("72", False),
        ("25+25+7+4+4+7", False),
        ("(25-7)*4/(3-3)", False),
        ("(25-7)**4", False),
        ("__import__('os')", False),
        ("(25-7)*4.0", False),
        ("(25-7", False),
        ("-" * 150 + "7", False),
        ("(" * 90 + "7" + ")" * 90, False),
        ("", False),
    ],
)
def test_expressions(expression: str, is_right: bool) -> None:
    assert countdown.is_right(PROBLEM, f"The answer is {expression}.") is is_right


def test_fractions_on_the_way_are_exact() -> None:
    problem = countdown.Problem("text", (), "", (1, 3, 6, 7), 18)
    assert countdown.is_right(problem, "The answer is 6/(1/3).")


@given(content=st.text())
def test_verifier_takes_any_text(content: str) -> None:
    assert not countdown.is_right(PROBLEM, content)
    assert not countdown.is_right(PROBLEM, f"The answer is {content}!")
