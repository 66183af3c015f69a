"""The word problems: what the verifier accepts, and that splits never meet."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tasks import TASKS, ProblemId, TaskError, sums
from models.tasks.base import SPLITS, closing_value, solution_of, split_of

SEEDS = st.integers(min_value=0, max_value=10**6)


@given(seed=SEEDS)
def test_reference_solution_is_right(seed: int) -> None:
    problem = sums.draw(random.Random(seed))
    solution = solution_of(problem)
    assert sums.is_right(problem, solution)
    assert sums.num_right_steps(problem, solution) == len(problem.steps) + 1


@given(seed=SEEDS, off=st.integers(min_value=-500, max_value=500).filter(bool))
def test_any_other_number_is_wrong(seed: int, off: int) -> None:
    problem = sums.draw(random.Random(seed))
    assert not sums.is_right(problem, f"The answer is {problem.answer + off}.")


@given(seed=SEEDS, data=st.data())
def test_step_verifier_stops_at_the_first_wrong_line(seed: int, data: st.DataObject) -> None:
    problem = sums.draw(random.Random(seed))
    lines = solution_of(problem).split("\n")
    broken = data.draw(st.integers(min_value=0, max_value=len(problem.steps) - 1))
    head, result = lines[broken].split("=")
    lines[broken] = f"{head}={int(result) + 1}"
    assert sums.num_right_steps(problem, "\n".join(lines)) == broken
    for shown in (broken, broken + 1):
        assert sums.num_right_steps(problem, "\n".join(lines[:shown])) == broken


def test_step_verifier_lets_summands_swap_but_not_subtrahends() -> None:
    problem = sums.Problem("text", ("20+5=25", "25-5=20"), 20)
    assert sums.num_right_steps(problem, "5+20=25\n25 - 5 = 20\nThe answer is 20.") == 3
    assert sums.num_right_steps(problem, "5+20=25\n5-25=20") == 1


@pytest.mark.parametrize(
    ("content", "is_right"),
    [
        ("The answer is 1,368.", True),
        ("The answer is 1368", True),
        ("The answer is 12.\nNo. The answer is 1368.", True),
        ("The answer is 1368.\nNo. The answer is 12.", False),
        ("1368", False),
        ("The answer is 1368.5.", False),
        ("The answer is -1368.", False),
        ("The answer is .", False),
        ("", False),
    ],
)
def test_closing_line(content: str, is_right: bool) -> None:
    assert sums.is_right(sums.Problem("text", (), 1368), content) is is_right


@given(content=st.text())
def test_verifiers_take_any_text(content: str) -> None:
    problem = sums.Problem("text", ("20+5=25",), 25)
    assert not sums.is_right(problem, content) or closing_value(content) is not None
    assert 0 <= sums.num_right_steps(problem, content) <= 2


@pytest.mark.parametrize("level", [sums.WIDE, sums.BROAD, sums.RELEASED])
def test_levels_keep_their_bounds(level: sums.Level) -> None:
    rng = random.Random(3)
    for _ in range(200):
        problem = sums.draw(rng, level)
        assert level.lines[0] <= len(problem.steps) <= level.lines[1]
        assert 0 < problem.answer <= level.max_value
        assert "@" not in problem.text
        assert "|" not in problem.text
        assert "{" not in problem.text


@settings(max_examples=30)
@given(
    task=st.sampled_from(sorted(TASKS)),
    split=st.sampled_from(SPLITS),
    seed=st.integers(min_value=-3, max_value=10**9),
    index=st.integers(min_value=0, max_value=10**6),
)
def test_id_names_one_problem_of_its_split(task: str, split: str, seed: int, index: int) -> None:
    which = ProblemId.parse(f"{task}-{split}-{seed}-{index}")
    assert ProblemId.parse(str(which)) == which
    problem = TASKS[task].problem(which.split, which.seed, which.index)
    assert problem == TASKS[task].problem(which.split, which.seed, which.index)
    assert split_of(problem.text) == split


def test_splits_share_no_text() -> None:
    texts = {
        split: {TASKS["sums"].problem(split, 1, index).text for index in range(150)}
        for split in SPLITS
    }
    assert all(len(of_split) == 150 for of_split in texts.values())
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


@pytest.mark.parametrize("text", ["", "sums", "sums-dev-1-2", "sums-test-1", "sums-test-1--2"])
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(TaskError, match="unknown problem id"):
        ProblemId.parse(text)
