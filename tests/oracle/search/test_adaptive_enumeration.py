"""Adaptive consistency against exact enumeration of what it may draw.

Every statistical test has a fixed seed and a false-alarm rate of at most 1e-4.
"""

import itertools
import math
from collections import Counter, defaultdict

from scipy.stats import chisquare

from search.answers import extract_answer
from search.posterior import is_decided
from search.select import vote
from tests.search_harness import result_of
from tests.toy_engine import ToyEngine, one_of

ALPHA = 1e-4
ANSWERS = {"so 4": 0.5, "well: 5": 0.3, "hm, I think 6": 0.2}
TABLE = one_of(ANSWERS)
WIDTH, THRESHOLD = 6, 0.87


def stopped(draws: tuple[str, ...]) -> tuple[str, int]:
    """The answer, and how many of the draws it takes, one by one."""
    for count in range(WIDTH + 1):
        groups = vote([extract_answer(one) for one in draws[:count]], [1.0] * count)
        if is_decided([group.weight for group in groups], WIDTH - count, THRESHOLD, "beta"):
            return groups[0].answer, count
    return groups[0].answer, WIDTH


async def test_answers_and_their_number_are_as_enumeration_says() -> None:
    exact: defaultdict[tuple[str, int], float] = defaultdict(float)
    for draws in itertools.product(ANSWERS, repeat=WIDTH):
        exact[stopped(draws)] += math.prod(ANSWERS[one] for one in draws)
    assert len({count for _, count in exact}) > 2
    assert {answer for answer, _ in exact} == {"4", "5", "6"}
    num_runs, drawn = 400, Counter[tuple[str, int]]()
    params = {"width": WIDTH, "threshold": THRESHOLD}
    for seed in range(num_runs):
        result = await result_of(ToyEngine(TABLE), "adaptive_consistency", params, seed=seed)
        answer = extract_answer(result.answers[0].content) or ""
        drawn[answer, result.spent.candidates] += 1
    assert drawn.keys() <= exact.keys()
    # outcomes too rare for the test's approximation are one
    common = [one for one in exact if num_runs * exact[one] >= 5]
    observed = [drawn[one] for one in common]
    expected = [num_runs * exact[one] for one in common]
    if len(common) < len(exact):
        observed.append(num_runs - sum(observed))
        expected.append(num_runs - sum(expected))
    assert chisquare(observed, expected).pvalue > ALPHA
