import logging
import threading

import pytest

from search.answers import canonical, equivalent, extract_answer, states_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12", "12"),
        ("3 + 4 = 7\nThe answer is 7.", "7"),
        ("The answer is 7.\n", "7"),
        ("The answer is 2.\nNo. The answer is 3.\n", "3"),
        ("The answer is 12.\nThe answer is", "12"),
        ("The final answer is: $-7/3$.", "-7/3"),
        ("Therefore, the final answer is: $\\boxed{7}$. I hope it is correct.", "7"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{\text{blue}}", "blue"),
        (r"\boxed{\left(1, \frac{2}{3}\right)}", r"\left(1, \frac{2}{3}\right)"),
        (r"\boxed{unclosed 4", "4"),
        (r"\boxed{}", None),
        ("The answer is $1,234.50$.", "1,234.50"),
        ("The answer is 12 apples.", "12"),
        ("The answer is 12, obviously.", "12"),
        ("The answer is 50%.", "50"),
        ("The answer is 3x.", "3x"),
        ("The answer is (3+4)*5.", "(3+4)*5"),
        ("The answer is **42**.", "42"),
        ("**Answer:** 42", "42"),
        ("some text #### 18", "18"),
        ("first 3.5, then 4.", "4"),
        ("it costs 1,000 or 2,500.", "2,500"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_extract(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


SAME = [
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"-\frac{1}{2}", "-1/2"),
    ("12", "12.0"),
    ("1,234", "1234"),
    ("$7$", "7"),
    ("\\$7", "7"),
    ("50%", "50"),
    ("1e3", "1000"),
    ("x + 1", "1+x"),
    ("(3+4)*5", "35"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("(1,2)", "(1, 2)"),
    ("north  east", "north east"),
]
DIFFERENT = [
    ("12", "13"),
    ("0.333", "1/3"),
    ("north", "12"),
    ("x+1", "x+2"),
    ("[invalid]", "3"),
    ("2^{99999}", "3"),
    ("9^9^9^9^9", "7"),
    ("10000!", "3"),
    ("1/0", "3"),
    ("+" * 500, "1"),
    ("\\frac{", "1"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_equivalent(a: str, b: str) -> None:
    assert equivalent(a, b)
    assert equivalent(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_not_equivalent(a: str, b: str) -> None:
    assert not equivalent(a, b)
    assert not equivalent(b, a)
    assert equivalent(a, a)


def test_equivalence_needs_no_main_thread_and_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    found: list[bool] = []
    with caplog.at_level(logging.DEBUG):
        thread = threading.Thread(target=lambda: found.append(equivalent("y+y+1", "2*y+1")))
        thread.start()
        thread.join()
    assert found == [True]
    assert not [one for one in caplog.records if "Timeout" in one.getMessage()]


def test_canonical_numbers_are_exact() -> None:
    assert canonical("0.1") + canonical("0.2") == canonical("0.3")  # type: ignore[operator]


def test_states_answer() -> None:
    assert states_answer("2\nThe answer is 4.")
    assert states_answer("The final answer is: 4")
    assert states_answer("Therefore, the final answer is 4")
    assert not states_answer("the answer may be 4")
    assert states_answer("done!", ["done"])
