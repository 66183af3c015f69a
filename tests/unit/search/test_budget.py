import asyncio

import pytest

from search.budget import Budget, Limits, level_share
from search.errors import BudgetExhausted


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_reservation_holds_until_it_is_settled() -> None:
    budget = Budget(Limits(generated_tokens=10))
    held = budget.reserve(generated_tokens=7, candidates=1)
    assert budget.left("generated_tokens") == 3
    with pytest.raises(BudgetExhausted, match=r"generated_tokens.*limit 10, 4 more"):
        budget.reserve(generated_tokens=4)
    held.settle(generated_tokens=2, candidates=1)
    held.settle(generated_tokens=2)  # only the first counts
    assert budget.left("generated_tokens") == 8
    assert (budget.spent.generated_tokens, budget.spent.candidates) == (2, 1)


def test_leaving_the_context_gives_everything_back() -> None:
    budget = Budget(Limits(reward_calls=3))
    with pytest.raises(ZeroDivisionError), budget.reserve(reward_calls=3):
        raise ZeroDivisionError
    assert budget.left("reward_calls") == 3
    assert budget.spent.reward_calls == 0


def test_a_child_spends_from_its_parent() -> None:
    clock = Clock()
    parent = Budget(Limits(generated_tokens=10, wall_ms=1000), clock=clock)
    clock.now += 0.4
    child = parent.child(Limits(generated_tokens=8, wall_ms=500))
    child.reserve(generated_tokens=5).settle(generated_tokens=5)
    assert (parent.left("generated_tokens"), child.left("generated_tokens")) == (5, 3)
    parent.count(generated_tokens=4)
    assert child.left("generated_tokens") == 1
    assert child.left("candidates") is None
    assert child.seconds_left == pytest.approx(0.5)
    clock.now += 0.3
    assert (parent.seconds_left, child.seconds_left) == pytest.approx((0.3, 0.2))
    assert parent.spent.wall_ms == 700
    clock.now += 0.25
    assert child.is_past_deadline
    assert not parent.is_past_deadline


def test_a_shortage_is_noted_where_it_binds() -> None:
    parent = Budget(Limits(candidates=10))
    child = parent.child(Limits(candidates=2))
    child.cut("candidates", 5)
    assert (child.cut_short, parent.cut_short) == ("budget", None)
    child.cut("candidates", 11)
    assert parent.cut_short == "budget"


def test_time_is_noted_where_it_is_up() -> None:
    clock = Clock()
    parent = Budget(Limits(wall_ms=100), clock=clock)
    inner, same = parent.child(Limits(wall_ms=50)), parent.child(Limits())
    clock.now += 0.06
    inner.cut_at_deadline()
    assert (inner.cut_short, parent.cut_short) == ("deadline", None)
    clock.now += 0.06
    same.cut("candidates", 1)
    same.cut_at_deadline()
    assert (same.cut_short, parent.cut_short) == ("deadline", "deadline")


async def test_in_time_cancels_at_the_deadline() -> None:
    budget = Budget(Limits(wall_ms=1))
    with pytest.raises(BudgetExhausted, match="time was up"):
        async with budget.in_time():
            await asyncio.Event().wait()
    assert budget.cut_short == "deadline"


async def test_in_time_leaves_other_timeouts_alone() -> None:
    budget = Budget(Limits(wall_ms=60_000))
    with pytest.raises(TimeoutError):
        async with budget.in_time():
            raise TimeoutError("the engine's own")
    assert budget.cut_short is None


def test_negative_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="wall_ms is -1"):
        Limits(wall_ms=-1)


@pytest.mark.parametrize(
    ("total", "groups", "share"),
    [
        (100, [(4, 10)], 10),
        (20, [(4, 10)], 5),
        (23, [(4, 10)], 5),
        (20, [(2, 2), (2, 50)], 8),
        (3, [(4, 10)], 0),
        (0, [], 0),
    ],
)
def test_level_share(total: int, groups: list[tuple[int, int]], share: int) -> None:
    assert level_share(total, groups) == share
