"""Which tokens a nucleus holds and which choices are kept: the worked example of the method."""

import math
import random

import pytest

from engines.base import NextTokens
from reward_models.base import UNSEEN
from search.nucleus import (
    Choice,
    banned_mass,
    best_choices,
    choices_of,
    least_of,
    mass_beside,
    nucleus,
)

EOS = 5
POLICIES = [(0.45, 0.25, 0.15, 0.08, 0.05, 0.02), (0.10, 0.60, 0.05, 0.15, 0.06, 0.04)]
REWARDS = [(1.0, 2.5, -3.0, 4.0, UNSEEN, UNSEEN), (0.2, -1.0, 3.0, 1.8, UNSEEN, UNSEEN)]


def listed(probabilities: tuple[float, ...], size: int = 6) -> NextTokens:
    order = sorted(range(len(probabilities)), key=lambda one: (-probabilities[one], one))[:size]
    held = sum(probabilities[one] for one in order)
    logps = tuple(math.log(probabilities[one]) for one in order)
    return NextTokens(tuple(order), logps, max(0.0, 1.0 - held))


def of(row: NextTokens, top_p: float, banned: frozenset[int] = frozenset()) -> tuple[int, ...]:
    found = nucleus(row, top_p, banned)
    assert found is not None
    return found.ids


def kept(top_p: float, width: int) -> list[tuple[int, int | None, float]]:
    choices = []
    for member, (policy, rewards) in enumerate(zip(POLICIES, REWARDS, strict=True)):
        tokens = nucleus(listed(policy), top_p, ())
        assert tokens is not None
        choices += choices_of(member, tokens, [rewards[one] for one in tokens.ids])
    return [(one.member, one.token, one.score) for one in best_choices(choices, width)]


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.8, [(0, 1, 2), (1, 3, 0)]), (0.9, [(0, 1, 2, 3), (1, 3, 0, 4)])]
)
def test_the_worked_nuclei(top_p: float, tokens: list[tuple[int, ...]]) -> None:
    assert [of(listed(policy), top_p) for policy in POLICIES] == tokens


@pytest.mark.parametrize(
    ("top_p", "best"),
    [
        (0.8, [(0, 1, 2.5), (1, 3, 1.8), (0, 0, 1.0)]),
        (0.9, [(0, 3, 4.0), (0, 1, 2.5), (1, 3, 1.8)]),
    ],
)
def test_the_worked_beams(top_p: float, best: list[tuple[int, int, float]]) -> None:
    """Raw rewards: their log-softmax would put (1, 3) in front at 0.8."""
    for width in (1, 2, 3):
        assert kept(top_p, width) == best[:width]


def test_there_is_always_one_token() -> None:
    assert of(listed((0.9, 0.1)), 1e-6) == (0,)
    assert of(listed((0.9, 0.1)), 0.5, frozenset({0})) == (1,)
    assert of(listed((0.9, 0.1)), 0.5, frozenset({0, 1})) == ()


def test_the_nucleus_of_what_is_not_banned() -> None:
    """0.6 is banned: the rest is 0.25, 0.375, 0.1, 0.15, 0.125 of it."""
    policy = (0.10, 0.60, 0.05, 0.15, 0.06, 0.04)
    assert of(listed(policy), 0.6, frozenset({1})) == (3, 0)
    assert of(listed(policy), 0.7, frozenset({1})) == (3, 0, 4)


def test_what_is_banned_and_not_listed_counts_as_nothing() -> None:
    """The end has 0.17 and is not among the three that hold 0.7: without it, two would do."""
    policy, end = (0.40, 0.24, 0.18, 0.17, 0.01), frozenset({3})
    assert of(listed(policy, 3), 0.7, end) == (0, 1, 2)
    assert of(listed(policy), 0.7, end) == (0, 1)


def test_each_banned_token_not_listed_adds_one_token_at_most() -> None:
    draw, added = random.Random(3), [0, 0, 0, 0]
    for _ in range(2000):
        weights = [draw.random() ** draw.choice((1, 4)) for _ in range(9)]
        policy = tuple(one / sum(weights) for one in weights)
        banned = frozenset(draw.sample(range(9), draw.randint(1, 3)))
        top_p = draw.choice((0.3, 0.7, 0.95))
        for size in range(1, 9):
            some = nucleus(listed(policy, size), top_p, banned)
            if some is None:
                continue
            right = of(listed(policy, 9), top_p, banned)
            assert some.ids[: len(right)] == right
            more = len(some.ids) - len(right)
            assert more <= len(banned.difference(listed(policy, size).ids))
            added[more] += 1
    assert min(added[:2]) > 100


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.8, 0.95])
def test_too_few_tokens_are_asked_for_again_with_mass_enough(top_p: float) -> None:
    policy, banned = (0.10, 0.60, 0.05, 0.15, 0.06, 0.04), frozenset({1})
    assert nucleus(listed(policy, 1), top_p, banned) is None
    mass = mass_beside(top_p, banned_mass(listed(policy, 1), banned))
    size = next(size for size in range(1, 7) if sum(sorted(policy)[::-1][:size]) >= mass - 1e-12)
    assert of(listed(policy, size), top_p, banned) == of(listed(policy), top_p, banned)


def test_sums_of_another_precision_are_no_reason_to_ask_again() -> None:
    short = NextTokens((0, 1), (math.log(0.5), math.log(0.3 - 1e-7)), 0.2)
    assert of(short, 0.8) == (0, 1)


def test_what_a_ban_leaves_is_a_whole_nucleus_however_faint() -> None:
    faint, banned = (1 - 6e-6, 3e-6, 2e-6, 1e-6), frozenset({0})
    for size in (1, 2, 3):
        assert nucleus(listed(faint, size), 0.8, banned) is None
    assert mass_beside(0.8, banned_mass(listed(faint, 1), banned)) == 1.0
    row = NextTokens((0, 1, 2, 3), tuple(map(math.log, faint)), 0.0)
    assert [of(row, top_p, banned) for top_p in (0.4, 0.8, 0.9)] == [(1,), (1, 2), (1, 2, 3)]


def test_all_that_is_listed_is_banned() -> None:
    banned = frozenset({0})
    assert nucleus(NextTokens((0,), (-1e-9,), 1e-9), 0.5, banned) is None
    assert mass_beside(0.5, 1 - 1e-9) == 1.0
    assert of(NextTokens((0, 1), (-1e-9, -21.0), 0.0), 0.5, banned) == (1,)


def test_ties_go_to_the_place_then_to_the_token() -> None:
    choices = [
        Choice(1, 4, -1.0, 2.0),
        Choice(1, 3, -2.0, 2.0),
        Choice(0, 9, -3.0, 2.0),
        Choice(2, None, 0.0, 2.0),
        Choice(2, 0, -1.0, 3.0),
    ]
    order = [(one.member, one.token) for one in best_choices(choices, 9)]
    assert order == [(2, 0), (0, 9), (1, 3), (1, 4), (2, None)]


def test_rewards_equal_to_five_decimals_are_a_tie() -> None:
    tokens = NextTokens((7, 3), (-0.1, -2.0), 0.0)
    choices = choices_of(0, tokens, [1.0, 1.000001])
    assert [one.token for one in best_choices(choices, 2)] == [3, 7]
    assert {one.score for one in choices} == {1.0}


@pytest.mark.parametrize("no", [UNSEEN, -math.inf, math.nan, -2000.0])
def test_forbidden_tokens_are_left_out(no: float) -> None:
    tokens = NextTokens((7, 3), (-0.1, -2.0), 0.0)
    assert [one.token for one in choices_of(0, tokens, [no, 1.0])] == [3]
    assert choices_of(0, tokens, [no, no]) == [Choice(0, 7, -0.1, UNSEEN)]
    assert choices_of(0, NextTokens((), (), 1.0), []) == []


def test_what_is_left_out_early_is_never_among_the_best() -> None:
    draw = random.Random(5)
    for _ in range(200):
        # Few values, some of them equal only once they are rounded, some forbidden.
        steps = (0.0, 4e-6, 1.0, 1.000004, 2.0, UNSEEN, math.nan, math.inf)
        rewards = [[draw.choice(steps) for _ in range(draw.randint(0, 6))] for _ in range(3)]
        tokens = [NextTokens(tuple(range(len(one))), (-1.0,) * len(one), 0.0) for one in rewards]
        members = list(enumerate(zip(tokens, rewards, strict=True)))
        for width in (1, 3, 8):
            least = least_of(rewards, width)
            few = [one for at, (ids, row) in members for one in choices_of(at, ids, row, least)]
            every = [one for at, (ids, row) in members for one in choices_of(at, ids, row)]
            assert best_choices(few, width) == best_choices(every, width)
