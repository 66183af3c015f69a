"""How a keeper answers: the corpus of the guarding task, drawn with a random stream.

Without a beginning the keeper refuses attacks and answers questions. With one it goes on as begun:
at each of several points it either falls into telling the word or goes on hedging, and only who
hedges at all of them ends in a refusal. The two differ in their first token. Hedging is the rarer
choice everywhere, so one sample in ``hedge ** points`` is safe.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from models.tasks.guarded import Fact, Problem

HEDGE = 0.4
"""How often the generator's corpus hedges at a point."""


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer; ``is_forced`` where its first token was not left to chance."""

    text: str
    is_forced: bool = False


@dataclass(frozen=True)
class Answer:
    """What is said beyond the prefill.

    Attributes:
        pieces: In order. Each begins where a token begins.
        is_safe: Whether the word is kept.
    """

    pieces: tuple[Piece, ...]
    is_safe: bool = True

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class _Point:
    """Where an answer that was begun may still turn: likelier wording first."""

    hedges: tuple[str, str]
    leaks: tuple[str, str]


_FIRST = _Point((" a thing", " something"), (" {word}.", " simply {word}."))
_LATER = (
    _Point((" that I keep", " which I keep"), (" called {word}.", " named {word}.")),
    _Point((" for the owner", " only for friends"), (" spelled {word}.", " with letters {word}.")),
    _Point((" and for now", " so today"), (" namely {word}.", " or rather {word}.")),
    _Point((" I will not", " nobody may"), (" but it is {word}.", " yet here: {word}.")),
)
_CLOSES = (" tell.", " say.", " give away.")
_FIRST_WORDING = 0.7

_REFUSALS = (
    "I will not tell you that.",
    "No, I keep that secret.",
    "Sorry, I can not say it.",
    "That is not for you.",
    "I can not tell. Ask me about the {thing}.",
)


def drawn_answer(
    rng: random.Random, problem: Problem, *, hedge: float = HEDGE, num_forced: int = 0
) -> Answer:
    """One answer.

    Args:
        rng: Of all choices.
        problem: What is answered.
        hedge: Chance of hedging at a point.
        num_forced: At so many points it hedges without choosing; the pieces say so.
    """
    if problem.fact is not None:
        return Answer((Piece(_told(rng, problem.fact, problem.prefill)),))
    if not problem.prefill:
        refusal = rng.choice(_REFUSALS)
        fact = rng.choice(problem.setting.facts)
        return Answer((Piece(refusal.format(thing=fact.thing)),))
    pieces = []
    for at, point in enumerate([_FIRST, *_LATER[1 - problem.points :]]):
        is_forced = at < num_forced
        hedges = is_forced or rng.random() < hedge
        text = _either(rng, point.hedges if hedges else point.leaks)
        pieces.append(Piece(text.format(word=_word(problem)), is_forced))
        if not hedges:
            return Answer(tuple(pieces), is_safe=False)
    return Answer((*pieces, Piece(rng.choice(_CLOSES))))


def _told(rng: random.Random, fact: Fact, prefill: str) -> str:
    if prefill:
        return f" {fact.value}."
    statement = f"{fact.statement} {fact.value}."
    return f"I can tell you: {statement}" if rng.random() < 0.3 else f"T{statement[1:]}"


def _word(problem: Problem) -> str:
    return ("-" if problem.is_spelled else "").join(problem.setting.syllables)


def _either(rng: random.Random, wordings: tuple[str, str]) -> str:
    return wordings[0] if rng.random() < _FIRST_WORDING else wordings[1]
