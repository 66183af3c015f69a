"""The short tasks: what is drawn is right, and what was tampered with is not."""

import random

import pytest

from models.tasks import tales, task_named, totals
from models.tasks.base import solution_of


@pytest.mark.parametrize("seed", range(20))
def test_reference_answers_are_right(seed: int) -> None:
    total = totals.draw(random.Random(seed))
    assert totals.is_right(total, solution_of(total))
    assert not totals.is_right(total, f"The answer is {total.answer + 1}.")
    assert not totals.is_right(total, "The answer is unknown.")
    tale = tales.draw(random.Random(seed))
    assert tales.is_right(tale, tale.answer)


TALE = "Mia has 34 coins. She buys 57 more coins at school. Now she has 91 coins."


@pytest.mark.parametrize(
    ("content", "is_right"),
    [
        (TALE, True),
        ("Mia has 34 coins. She gives away 30 coins. Now she has 4 coins.", True),
        (TALE.replace("She", "He"), False),
        (TALE.replace("Now she", "Now he"), False),
        (TALE.replace("Mia", "Ana"), False),
        (TALE.replace("34", "35"), False),
        (TALE.replace("91", "81"), False),
        (TALE.replace("more coins", "more cards"), False),
        (TALE.replace(" more", ""), False),
        (TALE + " Done.", False),
        ("", False),
    ],
)
def test_everything_in_a_tale_must_agree(content: str, is_right: bool) -> None:
    problem = tales.Problem("Tell of Mia and 34 coins.", (), TALE, "Mia", "coins", 34)
    assert tales.is_right(problem, content) is is_right


@pytest.mark.parametrize("name", ["totals", "tales"])
def test_held_out_questions_are_many(name: str) -> None:
    task = task_named(name)
    asked = {task.problem("test", 3, index).text for index in range(60)}
    assert len(asked) >= 55  # a few may be drawn twice
