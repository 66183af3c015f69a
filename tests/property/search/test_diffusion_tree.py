"""Laws of soft values and of growing trees, for any numbers and any order of landing."""

import math
import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from search.diffusion_tree import (
    Node,
    Rules,
    branch_levels,
    by_share,
    by_uct,
    depart,
    give_up,
    land,
    revisit,
    select,
    shares,
    soft_value,
)

values = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12)
sharp = st.one_of(st.floats(1e-3, 1e3), st.just(math.inf))


@given(values, sharp)
def test_a_soft_value_lies_between_mean_and_largest(found: list[float], lam: float) -> None:
    worth = soft_value(found, lam)
    slack = 1e-6 * max(1.0, *map(abs, found))
    assert math.fsum(found) / len(found) - slack <= worth <= max(found) + slack


@given(values, st.floats(1e-3, 1e3), st.floats(1, 50))
def test_a_soft_value_grows_with_sharpness(found: list[float], lam: float, more: float) -> None:
    slack = 1e-6 * max(1.0, *map(abs, found))
    assert soft_value(found, lam * more) >= soft_value(found, lam) - slack


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 6)), min_size=1, max_size=8), sharp)
def test_counts_are_copies(found: list[tuple[float, int]], lam: float) -> None:
    one_by_one = [value for value, count in found for _ in range(count)]
    merged = soft_value([value for value, _ in found], lam, [count for _, count in found])
    assert math.isclose(merged, soft_value(one_by_one, lam), rel_tol=1e-9, abs_tol=1e-9)


@given(values, sharp)
def test_shares_are_a_distribution_that_prefers_more_value(found: list[float], lam: float) -> None:
    given_out = shares(found, lam)
    assert math.isclose(math.fsum(given_out), 1.0, rel_tol=1e-9)
    best = given_out[found.index(max(found))]
    assert all(0 <= share <= best for share in given_out)


@given(st.integers(1, 4096))
def test_levels_fall_from_the_first_step(steps: int) -> None:
    levels = branch_levels(steps)
    assert levels[0] == steps
    assert all(above > below >= 1 for above, below in pairwise(levels))


@given(
    st.integers(0, 10_000),
    st.floats(0.3, 3),
    st.floats(0.05, 0.95),
    sharp,
    st.booleans(),
    st.booleans(),
    st.integers(1, 5),
)
def test_a_tree_keeps_its_books(
    seed: int,
    growth: float,
    exponent: float,
    lam: float,
    merges: bool,
    greedy: bool,
    width: int,
) -> None:
    """However rollouts land or fail, nothing stays in flight and every sum is what it must be."""
    rng, rules, root = random.Random(seed), Rules(growth, exponent, lam, merges), Node((), 0)
    pick = by_uct(lambda: 0.3) if greedy else by_share(lam, rng.random)
    landed = 0
    for _ in range(25):
        flights = []
        for _ in range(width):
            path = select(root, rules, pick, fits=lambda node: True)
            if path[-1].is_end:
                revisit(path, rules)
            else:
                depart(path)
                flights.append(path)
        for path in flights:
            if rng.random() < 0.2:
                give_up(path)
                continue
            states = [path[-1].state]
            while len(states[-1]) < 3:
                states.append((*states[-1], rng.randrange(3)))
            land(path, states[1:], rng.random() if not merges else sum(states[-1]) / 7, rules)
            landed += 1
    nodes = list(root.nodes)
    assert all(node.inflight == 0 for node in nodes)
    assert all(node.num_drawn == sum(one.samples for one in node.children) for node in nodes)
    assert sum(node.samples for node in nodes if node.is_end) == landed
    for node in nodes:
        assert node.is_end == (len(node.state) == 3)
        assert node.is_end or node is root or node.children
        assert all(child.parent is node for child in node.children)
        if node.children:
            counts = [child.samples for child in node.children]
            anew = soft_value([child.value for child in node.children], lam, counts)
            assert math.isclose(node.value, anew, rel_tol=1e-9, abs_tol=1e-12)
        if merges:
            states = [child.state for child in node.children]
            assert len(set(states)) == len(states)
    if math.isinf(lam) and landed:
        assert root.value == max(node.value for node in nodes if node.is_end)
