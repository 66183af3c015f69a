"""The sentences of a word problem: who, what, which event, and what is beside the point."""

from __future__ import annotations

import random

NAMES = ("Mia", "Ana", "Eva", "Zoe", "Amy", "Kim", "Tom", "Ben", "Leo", "Sam", "Max", "Ned")
NUM_WOMEN = 6
ITEMS = ("coins", "cards", "beads", "shells", "stamps", "books", "seeds", "nails", "pins", "eggs")

_GAIN = ("{who} finds {n} more {items}.", "{who} buys {n} {items}.", "{who} gets {n} {items}.")
_LOSE = ("{who} loses {n} {items}.", "{who} sells {n} of them.", "{who} gives away {n} {items}.")
_TIMES = (
    "{who} now makes it {n} times as many.",
    "Then the {items} grow to {n} times as many.|{who} now makes it {n} times as many.",
)
_SHARE = (
    "{who} makes {n} equal piles and keeps one pile.",
    "{who} shares all {items} among {n} people and keeps one share.",
)
_PACKS = ("{who} buys {n} boxes of {m} {items}.", "{who} gets {n} bags with {m} {items} each.")
_UNPACK = ("{who} sells {n} boxes of {m} {items}.", "{who} loses {n} bags with {m} {items} each.")
_BESIDE = (
    "{other} has {n} {items}.",
    "{other} buys {n} {items}.",
    "{other} sells {n} {items}.",
    "{other} gives away {n} {items}.",
    "{who} also has {n} {things}.",
    "There are {n} {items} in the shop.",
)
_OWNS = "{other} has {n} {items}."
_INHERIT = "{other} gives {who} all {items} {he} has."
_ASK = ("How many {items} does {name} have now?", "How many {items} does {name} have in the end?")


class Story:
    """Collects sentences in order; one story is one problem's text.

    A pronoun stands for the main person only straight after a sentence about that person, and of
    a pattern ``a|b`` the first form, which names nobody, only there. What
    another person owns is told early, so that reading on decides whether it matters.
    """

    def __init__(self, rng: random.Random, num_distractors: int) -> None:
        """Choose the people and things; ``num_distractors`` sentences are put in between."""
        self._rng = rng
        self._name, *self._others = rng.sample(NAMES, 4)
        self._items, self._things = rng.sample(ITEMS, 2)
        self._sentences: list[str] = []
        self._num_distractors = num_distractors
        self._has_heir = False

    def start(self, amount: int) -> None:
        """Tell how many the main person has at first."""
        self._tell(f"{self._name} has {amount} {self._items}.")

    def gain(self, amount: int) -> None:
        """More of them."""
        self._tell(self._rng.choice(_GAIN), n=amount)

    def lose(self, amount: int) -> None:
        """Fewer of them."""
        self._tell(self._rng.choice(_LOSE), n=amount)

    def times(self, factor: int) -> None:
        """So many times as many."""
        self._tell(self._rng.choice(_TIMES), n=factor)

    def share(self, parts: int) -> None:
        """One of so many equal parts is kept."""
        self._tell(self._rng.choice(_SHARE), n=parts)

    def packs(self, packs: int, each: int) -> None:
        """More, as a product."""
        self._tell(self._rng.choice(_PACKS), n=packs, m=each)

    def unpack(self, packs: int, each: int) -> None:
        """Fewer, as a product."""
        self._tell(self._rng.choice(_UNPACK), n=packs, m=each)

    def inherit(self, amount: int) -> bool:
        """Another person's things come over, told of long before; at most once a story."""
        if self._has_heir:
            return False
        self._has_heir = True
        other = self._others[0]
        he = "she" if NAMES.index(other) < NUM_WOMEN else "he"
        place = self._rng.randint(0, len(self._sentences))
        owns = _OWNS.format(other=other, n=amount, items=self._items)
        self._sentences.insert(place, owns)
        self._tell(_INHERIT, other=other, he=he)
        return True

    def finish(self) -> str:
        """Put the distractors in and ask; the canonical text."""
        sentences = list(self._sentences)
        for other in self._rng.sample(self._others[1:], self._num_distractors):
            place = self._rng.randint(1, len(sentences))
            pattern = self._rng.choice(_BESIDE)
            amount = self._rng.randint(10, 999)
            beside = self._fill(pattern, self._name, other=other, n=amount)
            sentences.insert(place, beside)
        told = [self._named(sentences, at) for at in range(len(sentences))]
        ask = self._fill(self._rng.choice(_ASK), self._name)
        return " ".join([*told, ask])

    def _named(self, sentences: list[str], at: int) -> str:
        """The sentence with its subject: a pronoun now and then, where it is clear."""
        before = sentences[at - 1] if at else ""
        is_clear = before.startswith(("@", f"{self._name} "))
        sentence = sentences[at].split("|")[0 if is_clear else -1]
        if not sentence.startswith("@"):
            return sentence
        pronoun = "She" if NAMES.index(self._name) < NUM_WOMEN else "He"
        subject = pronoun if is_clear and self._rng.random() < 0.6 else self._name
        return subject + sentence[1:]

    def _tell(self, pattern: str, **values: str | int) -> None:
        subject = self._name if pattern == _INHERIT else "@"
        self._sentences.append(self._fill(pattern, subject, **values))

    def _fill(self, pattern: str, who: str, **values: str | int) -> str:
        return pattern.format(
            who=who, name=self._name, items=self._items, things=self._things, **values
        )
