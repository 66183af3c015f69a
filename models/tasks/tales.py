"""Tales of three sentences in which everything must agree: who, what, and how many.

The asked person has some things, then more or fewer of them, and the last sentence counts. A tale
is acceptable when it is one of those that could have been drawn for the question: the same person
and things throughout, the right pronoun, and the right count. That is checked exactly.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from models.tasks.stories import ITEMS, NAMES, NUM_WOMEN
from models.tasks.totals import closeness

NAME = "tales"

_ASKED: Final = ("Tell of {name} and {n} {items}.", "A tale of {name} with {n} {items}, please.")
_GAINS: Final = ("finds", "buys", "gets")
_LOSSES: Final = ("loses", "sells", "gives away")
_PLACES: Final = ("", " at school", " in the park", " on the way", " in the shop")
_TALE: Final = re.compile(
    r"(?P<who>\w+) has (?P<first>[1-9]\d*) (?P<things>\w+)\. "
    r"(?P<she>She|He) "
    r"(?:(?P<gain>finds|buys|gets) (?P<more>[1-9]\d*) more|"
    r"(?P<loss>loses|sells|gives away) (?P<fewer>[1-9]\d*)) (?P<same>\w+)"
    r"(?: at school| in the park| on the way| in the shop)?\. "
    r"Now (?P<her>she|he) has (?P<last>[1-9]\d*) (?P<left>\w+)\."
)
_SENTENCES: Final = (
    re.compile(r"(?P<who>\w+) has (?P<n>\d{1,6}) (?P<things>\w+)"),
    re.compile(
        r"(?P<she>She|He) "
        r"(?:(?:finds|buys|gets) (?P<more>\d{1,6}) more|"
        r"(?:loses|sells|gives away) (?P<fewer>\d{1,6})) (?P<things>\w+)"
        r"(?: at school| in the park| on the way| in the shop)?"
    ),
    re.compile(r"Now (?P<she>she|he) has (?P<n>\d{1,6}) (?P<things>\w+)"),
)
_QUESTION: Final = re.compile(
    r"(?:Tell of (?P<a>\w+) and|A tale of (?P<b>\w+) with) "
    r"(?P<count>[1-9]\d?) (?P<things>\w+)(?:\.|, please\.)"
)


@dataclass(frozen=True)
class Problem:
    """A question for a tale; `answer` is one acceptable tale among many."""

    text: str
    steps: tuple[str, ...]
    answer: str
    who: str
    things: str
    count: int


def draw(rng: random.Random, max_amount: int = 9) -> Problem:
    """One question and one tale for it.

    Args:
        rng: Every random choice comes from it.
        max_amount: The most that is gained or lost.
    """
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    she = "she" if NAMES.index(name) < NUM_WOMEN else "he"
    first, amount = rng.randint(12, 99), rng.randint(2, max_amount)
    asked = rng.choice(_ASKED).format(name=name, n=first, items=items)
    place = rng.choice(_PLACES)
    if amount < first and rng.random() < 0.5:
        event, last = f"{rng.choice(_LOSSES)} {amount} {items}", first - amount
    else:
        event, last = f"{rng.choice(_GAINS)} {amount} more {items}", first + amount
    tale = (
        f"{name} has {first} {items}. {she.capitalize()} {event}{place}. "
        f"Now {she} has {last} {items}."
    )
    return Problem(asked, (), tale, name, items, first)


def read(text: str) -> Problem | None:
    """The question as a problem, without a tale of its own; None for another question."""
    found = _QUESTION.fullmatch(text.strip())
    who = "" if found is None else found["a"] or found["b"]
    if found is None or who not in NAMES:
        return None
    return Problem(text.strip(), (), "", who, found["things"], int(found["count"]))


def worth(problem: Problem, content: str) -> float:
    """How much of what must hold does, in 0..1; 1 for an acceptable tale, and only for it.

    Each sentence that is one of its kind counts, and in it each word that agrees with the question;
    most counts the last number, by its right digits.
    """
    if is_right(problem, content):
        return 1.0
    sentences = [part.strip() for part in content.strip().split(".") if part.strip()]
    told = [
        pattern.fullmatch(sentence)
        for pattern, sentence in zip(_SENTENCES, sentences, strict=False)
    ]
    first, event, last = (*told, None, None, None)[:3]
    she = "she" if NAMES.index(problem.who) < NUM_WOMEN else "he"
    share = 0.1 * sum(found is not None for found in (first, event, last))
    share += 0.05 * sum(found is not None and found["things"] == problem.things for found in told)
    if first is not None:
        share += 0.05 * (first["who"] == problem.who) + 0.1 * (int(first["n"]) == problem.count)
    share += 0.05 * (event is not None and event["she"].lower() == she)
    share += 0.05 * (last is not None and last["she"] == she)
    if event is not None and last is not None:
        change = int(event["more"] or 0) - int(event["fewer"] or 0)
        share += 0.25 * closeness(last["n"], problem.count + change)
    return float(share)


def is_right(problem: Problem, content: str) -> bool:
    """Whether the content is an acceptable tale for the question."""
    found = _TALE.fullmatch(content.strip())
    if found is None or any(len(found[part] or "") > 9 for part in ("first", "more", "fewer")):
        return False
    she = "she" if NAMES.index(problem.who) < NUM_WOMEN else "he"
    change = int(found["more"] or 0) - int(found["fewer"] or 0)
    return (
        found["who"] == problem.who
        and {found["things"], found["same"], found["left"]} == {problem.things}
        and found["she"].lower() == found["her"] == she
        and int(found["first"]) == problem.count
        and int(found["last"]) == int(found["first"]) + change
    )
