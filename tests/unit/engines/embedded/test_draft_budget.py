"""How many nodes are worth verifying, with steps whose cost is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from engines.embedded.draft_budget import DraftBudget, StepCost, Trust


def learnt(
    plain: float, wide_start: float, wide_slope: float, *, asking: float = 0.0
) -> DraftBudget:
    """A budget that has seen steps of one branch, and of 2 to 33 rows."""
    budget = DraftBudget(32)
    for _ in range(200):
        budget.took(1, 1, plain)
        if asking:
            budget.asked(asking, 1)
        if not budget.ask() or not budget.is_trying:
            break
        budget.attempt(8)
    for rows in (2, 33, 9, 17, 5, 2, 33) * 40:
        budget.took(1, 1, 99.0)  # behind a step with drafts, and so not typical
        budget.took(1, 1, plain)
        budget.took(1, rows, wide_start + wide_slope * rows)
        if asking:
            budget.asked(asking, 1)
    return budget


def test_flat_steps_take_every_node() -> None:
    budget = learnt(1.0, 1.0, 0.0)
    assert budget.cut([[0.9, 0.5, 0.1, 0.01]], 1) == [4]


def test_a_node_has_to_pay_for_its_row() -> None:
    budget = learnt(1.0, 1.0, 0.1)
    # Chances .9 .8 .1: a row costs a tenth of a step, with two accepted a third one must bring .27.
    assert budget.cut([[0.9, 0.8, 0.1]], 1) == [2]


def test_dear_rows_are_not_run_at_all() -> None:
    budget = learnt(1.0, 1.0, 1.0)
    assert budget.cut([[0.9, 0.8]], 1) == [0]


def test_slow_drafters_are_not_worth_fast_steps() -> None:
    assert learnt(1.0, 1.0, 0.0).cut([[0.5]], 1) == [1]
    assert learnt(1.0, 1.0, 0.0, asking=0.6).cut([[0.5]], 1) == [0]


def test_the_likeliest_nodes_of_all_trees_come_first() -> None:
    budget = learnt(1.0, 1.0, 0.0)
    for _ in range(600):
        budget.took(2, 2, 99.0)
        budget.took(2, 2, 1.0)
        for rows in (3, 4, 8, 12):
            budget.took(2, rows, 0.8 + 0.1 * rows)
    # Over two branches a row costs a tenth of a step that gives two tokens.
    assert budget.cut([[0.9, 0.1], [0.8, 0.7]], 2) == [1, 2]


def test_a_node_counts_for_no_more_than_those_before_it() -> None:
    # Only the end of a tree is cut, so a likely node behind an unlikely one costs both rows.
    budget = learnt(1.0, 1.0, 0.2)
    assert budget.cut([[0.1, 0.9]], 1) == [0]


def test_in_vain_drafters_are_asked_more_and_more_rarely() -> None:
    budget = learnt(1.0, 1.0, 1.0, asking=0.4)
    asked = []
    for step in range(2000):
        if budget.ask():
            asked.append(step)
            if budget.is_resting:
                budget.probe([0.9], 4, 4)
            else:
                budget.cut([[0.9]], 1)
    assert len(asked) < 2000 / 35 + 20  # forty times a hundredth of a step
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert max(gaps) <= 64


def test_cheap_drafters_are_asked_more_often() -> None:
    budget = learnt(1.0, 1.0, 1.0, asking=0.02)
    asked = 0
    for _ in range(300):
        if budget.ask():
            asked += 1
            budget.cut([[0.9]], 1)
    assert 80 < asked < 120


def play(steps: int, cost: Callable[[int], float], chances: Sequence[float]) -> list[int]:
    """Nodes verified in each step of one branch, when steps cost this by their rows."""
    budget = DraftBudget(32)
    verified = []
    for _ in range(steps):
        nodes = budget.ask()
        keep = 0
        if nodes:
            tree = chances[:nodes]
            keep = budget.attempt(len(tree)) if budget.is_trying else budget.cut([tree], 1)[0]
        budget.took(1, 1 + keep, cost(1 + keep))
        verified.append(keep)
    return verified


def test_trials_come_more_and_more_rarely() -> None:
    verified = play(4000, lambda rows: 1.0 + 2.0 * (rows - 1), [0.9] * 8)
    assert sum(keep > 0 for keep in verified[:100]) == 7
    starts = [at for at, keep in enumerate(verified) if keep and not verified[at - 1]]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert len(starts) <= 6
    assert sum(keep > 0 for keep in verified) < 0.02 * len(verified)


def test_cold_steps_say_nothing() -> None:
    """The first drafts run code that nobody ran before; a trial finds them cheap all the same."""
    steps = itertools.count()

    def cost(rows: int) -> float:
        return 1.0 if rows == 1 else 5.0 if next(steps) < 3 else 1.2

    verified = play(300, cost, [0.9, 0.8, 0.5])
    assert sum(keep > 0 for keep in verified) > 280


def test_what_became_cheap_is_found_by_the_next_trial() -> None:
    steps = itertools.count()

    def cost(rows: int) -> float:
        is_late = next(steps) > 1000
        return 1.0 + (0.01 if is_late else 3.0) * (rows - 1)

    verified = play(2400, cost, [0.9, 0.8, 0.5])
    assert not any(verified[300:700])
    assert sum(keep > 0 for keep in verified[-200:]) > 180


def test_a_good_probe_ends_the_rest() -> None:
    budget = learnt(1.0, 1.0, 1.0)
    while not budget.is_resting:
        budget.cut([[0.2]], 1)
    for rows in (2, 9, 33) * 400:  # steps have become cheap
        budget.took(1, 1, 99.0)
        budget.took(1, 1, 1.0)
        budget.took(1, rows, 1.0)
    budget.probe([0.9], 1, 1)
    assert not budget.is_resting
    assert budget.ask() > 0


def test_a_step_without_drafts_is_measured_now_and_then() -> None:
    budget = learnt(1.0, 1.0, 0.0)
    kept = []
    for _ in range(200):
        [count] = budget.cut([[0.9]], 1)
        kept.append(count)
        budget.took(1, 1 + count, 1.0)
    assert 4 <= kept.count(0) <= 8  # two at a time, of which the second is measured


def test_before_anything_is_measured_nothing_is_drafted() -> None:
    budget = DraftBudget(8)
    assert budget.ask() == 0
    assert budget.cut([[1.0, 1.0]], 1) == [0]


@pytest.mark.parametrize("widths", [[1, 2, 4, 8, 16, 32], [3, 30]])
def test_a_line_is_found(widths: list[int]) -> None:
    cost = StepCost()
    for width in widths * 30:
        cost.learn(width, 2.0 + 0.25 * width)
    assert cost(12) == pytest.approx(5.0, rel=0.02)


def test_one_width_says_nothing_about_others() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.learn(4, 2.0)
    assert cost(64) == pytest.approx(2.0)


def test_an_interrupted_step_is_soon_forgotten() -> None:
    cost = StepCost()
    cost.learn(4, 1.0)
    cost.learn(4, 1000.0)
    for _ in range(30):
        cost.learn(4, 1.0)
    assert cost(4) < 1.1


def test_a_drafter_is_believed_as_far_as_it_was_right() -> None:
    trust = Trust()
    for _ in range(400):
        trust.learn(2.0, 1)
    assert trust.ratio == pytest.approx(0.5, abs=0.03)
