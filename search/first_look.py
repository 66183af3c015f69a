"""What a few samples of a question say about how hard it is. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from search.posterior import beta_sureness, with_judgement

Verdict: TypeAlias = Literal["easy", "open", "hard"]
"""The answer is clear; a few more samples may make it so; the samples disagree or are bad."""

_ROUNDING: Final = 5


@dataclass(frozen=True)
class Stated:
    """An answer that some of the samples state.

    Attributes:
        votes: The samples, weighted by confidence, of average 1.
        num_samples: How many they are.
        value: What the judge makes of them, 0 to 1; None without a judge.
    """

    votes: float
    num_samples: int
    value: float | None = None


@dataclass(frozen=True)
class FirstLook:
    """A few samples of a question: what they state, and how many there are."""

    answers: tuple[Stated, ...]
    num_samples: int

    @property
    def leading(self) -> int:
        """The position of the answer that is surest; the first of equals."""
        return max(range(len(self.answers)), key=self._sureness)

    @property
    def sure(self) -> float:
        """How sure the leading answer is, a probability; 0 where none is stated."""
        return self._sureness(self.leading) if self.answers else 0.0

    def _sureness(self, at: int) -> float:
        """The Beta posterior of its votes against the strongest other answer's.

        A judge's value counts as independent evidence: the log-odds add up.
        """
        others = [one.votes for other, one in enumerate(self.answers) if other != at]
        voted = beta_sureness(self.answers[at].votes, max(others, default=0.0))
        value = self.answers[at].value
        return round(voted if value is None else with_judgement(voted, value), _ROUNDING)

    def verdict(self, threshold: float, hard_below: float) -> Verdict:
        """Easy from `threshold` on, hard below `hard_below`, open between."""
        if self.sure >= threshold:
            return "easy"
        return "hard" if self.sure < hard_below else "open"

    @property
    def reason(self) -> str:
        """The numbers in words; there must be an answer."""
        best = self.answers[self.leading]
        judged = "" if best.value is None else f", judged {best.value:.2f}"
        agreed = f"{best.num_samples} of {self.num_samples} samples agree"
        return f"{agreed}{judged} ({math.floor(100 * self.sure)} % sure)"


def relative_confidences(logps: Sequence[Sequence[float]]) -> list[float]:
    """The geometric mean probability of each answer's tokens, over their average; 1 if unknown.

    Args:
        logps: Log-probabilities of every answer's tokens, in nats.
    """
    means = [math.exp(sum(one) / len(one)) if one else math.nan for one in logps]
    known = [one for one in means if not math.isnan(one)]
    average = sum(known) / len(known) if known else 1.0
    if not average:
        return [1.0] * len(means)
    return [1.0 if math.isnan(one) else round(one / average, _ROUNDING) for one in means]
