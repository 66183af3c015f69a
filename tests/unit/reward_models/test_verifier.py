"""What the verifier reads, and what it leaves alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_models.base import Candidate
from reward_models.errors import RewardLoadError
from reward_models.verifier import NEUTRAL, equations, judged, open_judge


def holds(text: str) -> list[bool]:
    return [equation.holds for equation in equations(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12+30=42", [True]),
        ("12 + 30 = 43", [False]),
        ("2+3*4=14", [True]),
        ("(2+3)*4=20", [True]),
        ("7/2=3.5", [True]),
        ("10/3=3.33", [False]),
        ("1,200 − 200 = 1,000", [True]),  # noqa: RUF001
        ("3 x 4 = 12", [True]),
        (r"$3 \times 4 = 12$", [True]),
        ("8 ÷ 2 = 4", [True]),
        ("2 + 3 = 5 = 10 / 2", [True, True]),
        ("2 + 3 = 6 = 12 / 2", [False, True]),
        ("2+3=5=6", [True, False]),
        ("-3+5=2", [True]),
        ("2 - -3 = 5", [True]),
        ("5/0=1", [False]),
        ("1/(2-2)=0", [False]),
    ],
)
def test_sums_are_computed_exactly(text: str, expected: list[bool]) -> None:
    assert holds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no sums",
        "x = 5",
        "5 = 5",
        "3 + = 5",
        "= 5",
        "a+b=c",
        "2^3=8",
        "12:30=42",
        "2^3+1=9",
        "9+0=3^2",
        "x3+4=9",
        "3+4=7x",
        "50% + 1 = 2",
        "5 = 6",
        "((1)=1",
        "f(3)",
    ],
)
def test_what_is_no_sum_is_left_alone(text: str) -> None:
    assert holds(text) == []


@pytest.mark.parametrize(
    "text",
    ["Step 1: 3+4=7.", "1. 3+4=7", "- 3+4=7", "* 3+4=7", "so 12 3+4=7", "3+4=7 coins", "5\n3+4=7"],
)
def test_words_and_bullets_around_a_sum_do_not_matter(text: str) -> None:
    assert holds(text) == [True]


def scored(*steps: str, is_finished: bool = True) -> tuple[float, tuple[float, ...]]:
    score = judged(Candidate((), "".join(steps), (), steps, None, is_finished))
    return score.value, score.steps


def test_value_is_the_share_and_steps_are_all_or_nothing() -> None:
    value, steps = scored("1+1=2, 2+2=5\n", "just words\n", "3+3=6\n")
    assert value == pytest.approx(2 / 3)
    assert steps == (0.0, NEUTRAL, 1.0)


def test_without_equations_all_is_neutral() -> None:
    assert scored("hm\n", "The answer is 3.") == (NEUTRAL, (NEUTRAL, NEUTRAL))
    assert scored() == (NEUTRAL, ())


def test_an_equation_over_two_steps_belongs_to_the_second() -> None:
    assert scored("12+3=1", "5\n") == (1.0, (NEUTRAL, 1.0))


def test_the_growing_number_of_an_unfinished_answer_waits() -> None:
    assert scored("12+3=1", is_finished=False) == (NEUTRAL, (NEUTRAL,))
    assert scored("12+3=1") == (0.0, (0.0,))
    assert scored("12+3=15\n", is_finished=False) == (1.0, (1.0,))


def test_options_are_refused() -> None:
    with pytest.raises(RewardLoadError, match="strict"):
        open_judge("verifier", "", {"strict": True})


@pytest.mark.parametrize("text", ["(" * 5000 + "1=1", "1+" * 5000 + "1=1", "9" * 5000 + "+1=1"])
def test_monstrous_sums_are_left_alone(text: str) -> None:
    assert holds(text) == []


@given(st.text("0123456789+-*/=(). x,\n$^a", max_size=60))
def test_any_text_is_judged(text: str) -> None:
    value, _ = scored(text)
    assert 0 <= value <= 1


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from("+-*"), st.integers(-2, 2))
def test_agrees_with_python(left: int, right: int, sign: str, error: int) -> None:
    results = {"+": left + right, "-": left - right, "*": left * right}
    assert holds(f"{left} {sign} {right} = {results[sign] + error}") == [error == 0]
