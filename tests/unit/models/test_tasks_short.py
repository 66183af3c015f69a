"""The short tasks: what is drawn is right, and what was tampered with is not."""

import random

import pytest

from models.short_judge import NEUTRAL, open_judge, worth
from models.tasks import tales, task_named, totals
from models.tasks.base import solution_of
from reward_models.base import Candidate
from reward_models.errors import RewardLoadError, RewardUnavailable


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


@pytest.mark.parametrize("seed", range(30))
def test_a_question_is_read_as_it_was_drawn(seed: int) -> None:
    total = totals.draw(random.Random(seed))
    assert totals.read(total.text) == total
    tale = tales.draw(random.Random(seed))
    found = tales.read(tale.text)
    assert found is not None
    assert (found.who, found.things, found.count) == (tale.who, tale.things, tale.count)
    assert worth(total.text, solution_of(total)) == 1.0
    assert worth(tale.text, tale.answer) == 1.0
    assert worth(tale.text, solution_of(total)) < 0.2
    assert worth(total.text, tale.answer) == 0.0


ASKED = "What is 34+57-8?"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("34+57=91\n91-8=83\nThe answer is 83.", "34+57=91\n91-8=83\nThe answer is 84."),
        ("34+57=91\n91-8=83\nThe answer is 84.", "34+57=91\n91-8=84\nThe answer is 84."),
        ("34+57=91\n91-8=84\nThe answer is 84.", "34+57=81\n81-8=72\nThe answer is 72."),
        ("34+57=92\n92-8=84\nThe answer is 84.", "34+58=93\n93-8=85\nThe answer is 95."),
        ("34+57=91\n91-8=4", "34+57=91"),
        ("34+57=91", "34+57"),
    ],
)
def test_nearer_sums_are_worth_more(better: str, worse: str) -> None:
    assert worth(ASKED, better) > worth(ASKED, worse)
    assert worth(ASKED, worse) < 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("She buys", "He buys"),
        ("Now she", "Now he"),
        ("Mia", "Ana"),
        ("34", "35"),
        ("91", "81"),
        ("more coins", "more cards"),
        (" more", ""),
        ("school", "sea"),
        (". Now she has 91 coins.", "."),
    ],
)
def test_every_slip_in_a_tale_costs_something(old: str, new: str) -> None:
    asked = "Tell of Mia and 34 coins."
    slipped = TALE.replace(old, new)
    assert slipped != TALE
    assert 0 < worth(asked, slipped) < worth(asked, TALE) == 1.0
    twice = slipped.replace("coins", "nails")
    assert worth(asked, twice) < worth(asked, slipped)


@pytest.mark.parametrize("content", ["", ".", "...", "The answer is", "9" * 400, "1+1=2\n" * 50])
def test_anything_can_be_judged(content: str) -> None:
    assert 0 <= worth(ASKED, content) < 1
    assert 0 <= worth("Tell of Mia and 34 coins.", content) < 1
    assert worth("Who are you?", content) == NEUTRAL
    assert worth("Tell of Nobody and 34 coins.", content) == NEUTRAL


async def test_the_judge_reads_the_last_question() -> None:
    judge = open_judge("short", "", {})
    messages = (
        {"role": "user", "content": "What is 1+1+1?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": ASKED},
    )
    steps = ("34+57=91\n", "91-8=83\n", "The answer is 83.")
    text = "".join(steps)
    [score, none] = await judge.score(
        [Candidate(messages, text, (), steps), Candidate((), text, (), (text,))]
    )
    assert score.value == score.steps[-1] == 1.0
    assert list(score.steps) == sorted(score.steps)
    assert none.value == NEUTRAL
    await judge.aclose()
    with pytest.raises(RewardUnavailable):
        await judge.score([])
    with pytest.raises(RewardLoadError):
        open_judge("short", "", {"x": 1})
