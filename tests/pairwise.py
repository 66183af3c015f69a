"""Few cases in which every two values of different factors meet.

Most faults of combinations show up with two values already, so covering all pairs finds nearly as
much as the full product, in a number of cases near the product of the two largest factors.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]


def pairwise_cases(
    factors: Mapping[str, Sequence[Any]],
    is_allowed: Callable[[Mapping[str, Any]], bool] = lambda case: True,
) -> list[Case]:
    """Cases that cover every pair of values that may stand together; the same ones every time.

    Greedy: a case begins with a pair that is still missing, and takes of every other factor the
    value that brings most missing pairs with it.

    Args:
        factors: The values of each factor, hashable.
        is_allowed: Whether these values may stand together; asked of unfinished cases too.
    """
    missing = {
        (one, a, two, b): None
        for one, two in combinations(factors, 2)
        for a in factors[one]
        for b in factors[two]
        if is_allowed({one: a, two: b})
    }
    cases = []
    while missing:
        one, a, two, b = next(iter(missing))
        case: Case = {one: a, two: b}
        for factor in factors:
            if factor not in case:
                fitting = [v for v in factors[factor] if is_allowed({**case, factor: v})]
                case[factor] = max(fitting, key=lambda v: _gain({**case, factor: v}, missing))
        for pair in _pairs(case, factors):
            missing.pop(pair, None)
        cases.append({factor: case[factor] for factor in factors})
    return cases


def _pairs(case: Case, order: Mapping[str, Any]) -> list[tuple[str, Any, str, Any]]:
    known = [factor for factor in order if factor in case]
    return [(one, case[one], two, case[two]) for one, two in combinations(known, 2)]


def _gain(case: Case, missing: Mapping[tuple[str, Any, str, Any], None]) -> int:
    together = combinations(case, 2)
    return sum(
        (one, case[one], two, case[two]) in missing or (two, case[two], one, case[one]) in missing
        for one, two in together
    )
