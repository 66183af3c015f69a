"""What k samples would have done, estimated without bias from n of them.

Every estimator is the mean over all subsets of k of the n samples, computed in closed form. Pure
functions of counts, exact up to the last division.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that at least one of k samples is right: 1 - C(n-m, k) / C(n, k).

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374,
    equation 1; in whole numbers, where the original multiplies floats.

    Raises:
        ValueError: Counts that no samples have.
    """
    _check(num_samples, num_right, k)
    every = comb(num_samples, k)
    return (every - comb(num_samples - num_right, k)) / every


def worst_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that all of k samples are right: C(m, k) / C(n, k).

    Raises:
        ValueError: Counts that no samples have.
    """
    _check(num_samples, num_right, k)
    return comb(num_right, k) / comb(num_samples, k)


def majority_at_k(votes: Sequence[int], right: int | None, k: int, *, silent: int = 0) -> float:
    """Probability that the vote of k samples is for the right answer.

    Answers with equally many votes win equally often: that is what a vote comes to whose ties go
    to the answer first to reach its total, the samples being in random order.

    Args:
        votes: How many samples gave each distinct answer.
        right: Which of them is right; None where no sample gave it.
        k: Samples in a vote.
        silent: Samples that state no answer: they are drawn, but have no vote.

    Raises:
        ValueError: Counts that no samples have.
    """
    num_samples = sum(votes) + silent
    if min((*votes, silent)) < 0 or (right is not None and not 0 <= right < len(votes)):
        raise ValueError(f"votes {list(votes)} and {silent} silent have no answer {right}")
    _check(num_samples, 0, k)
    if right is None:
        return 0.0
    others = [count for at, count in enumerate(votes) if at != right]
    wins = Fraction(0)
    for most in range(1, min(votes[right], k) + 1):
        ways = _outvoted(others, silent, k - most, most)
        wins += comb(votes[right], most) * ways
    return float(wins / comb(num_samples, k))


def _outvoted(others: Sequence[int], silent: int, left: int, most: int) -> Fraction:
    """Ways to draw `left` samples in which nobody has over `most` votes; a tie of r counts 1/r."""
    ways: dict[tuple[int, int], int] = {(0, 0): 1}  # by samples drawn and answers level with `most`
    for count in others:
        grown: dict[tuple[int, int], int] = defaultdict(int)
        for (drawn, level), number in ways.items():
            for taken in range(min(count, most, left - drawn) + 1):
                grown[drawn + taken, level + (taken == most)] += number * comb(count, taken)
        ways = grown
    return sum(
        (
            Fraction(number * comb(silent, left - drawn), 1 + level)
            for (drawn, level), number in ways.items()
        ),
        Fraction(0),
    )


def _check(num_samples: int, num_right: int, k: int) -> None:
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(
            f"{num_right} right of {num_samples} samples say nothing of {k}: k is in 1…n, and as "
            "many are right as there are at most"
        )
