"""Allocation, the integer program and grouping, against their definitions."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.budget import level_share
from search.cover import KeepProblem, node_shares, solve
from search.select import INVALID, rebase_counts, spread, vote
from search.steps import split_steps

rewards = st.lists(st.floats(0, 1, allow_nan=False).map(lambda one: round(one, 5)), min_size=1)


@settings(deadline=None)
@given(rewards, st.integers(0, 300), st.floats(1e-4, 10))
def test_allocation_spends_exactly_the_budget(
    values: list[float], budget: int, temperature: float
) -> None:
    counts = rebase_counts(values, budget, temperature)
    assert sum(counts) == budget
    assert min(counts) >= 0
    for (a, m), (b, n) in itertools.pairwise(zip(values, counts, strict=True)):
        # more reward never gets fewer, and equal rewards differ by one at most
        assert not (a > b and m < n)
        assert a != b or abs(m - n) <= 1


def random_problem(rng: random.Random) -> KeepProblem:
    """A tree of up to three levels with up to eight leaves."""
    paths: list[tuple[int, ...]] = []
    numbers = itertools.count(1)
    for _ in range(rng.randint(1, 3)):
        top = next(numbers)
        for _ in range(rng.randint(1, 3)):
            middle = next(numbers)
            paths += [(0, top, middle, next(numbers)) for _ in range(rng.randint(0, 2))]
    paths = paths[:8] or [(0, 1)]
    weights = [rng.randint(0, 6) for _ in paths]
    weights[rng.randrange(len(paths))] += 1
    lambda_d = rng.choice([0.0, 0.5, 1.0, 1.5])
    clusters = [rng.randint(0, 3) for _ in paths] if lambda_d else []
    return KeepProblem(weights, paths, clusters, rng.choice([0.0, 0.5, 1.0, 2.0]), lambda_d)


def token_costs(problem: KeepProblem, rng: random.Random) -> KeepProblem:
    """The same problem with nodes that cost by their tokens; the root is free."""
    nodes = sorted({node for path in problem.paths for node in path[1:]})
    return replace(problem, costs=node_shares({node: rng.randint(0, 60) for node in nodes}))


@pytest.mark.parametrize("seed", range(160))
def test_the_integer_program_finds_the_best_subset(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng)
    if seed >= 120:
        problem = token_costs(problem, rng)
    everything = range(len(problem.paths))
    best = max(
        problem.objective(kept)
        for size in range(1, len(problem.paths) + 1)
        for kept in itertools.combinations(everything, size)
    )
    kept = solve(problem)
    assert kept
    assert problem.objective(kept) == pytest.approx(best, abs=1e-7)
    if not problem.lambda_b:
        assert kept == list(everything)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), max_size=6), st.integers(0, 500))
def test_shares_fit_and_waste_little(groups: list[tuple[int, int]], total: int) -> None:
    share = level_share(total, groups)
    spent = sum(n * min(cap, share) for n, cap in groups)
    more = sum(n * min(cap, share + 1) for n, cap in groups)
    assert spent <= total
    assert more > total or more == spent


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 30))
def test_spread_is_exact_and_even(total: int, ways: int) -> None:
    parts = spread(total, ways)
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


@settings(deadline=None)
@given(st.text("ab \n.", max_size=60), st.lists(st.sampled_from(["\n", "\n\n", ".", "ab"])))
def test_steps_joined_are_the_text(text: str, delimiters: list[str]) -> None:
    steps = split_steps(text, delimiters)
    assert "".join(steps) == text
    if len(steps) > 1:
        assert all(step.strip() for step in steps)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["1", "1.0", "2", "x+1", None]), min_size=1, max_size=12))
def test_groups_partition_the_votes(answers: list[str | None]) -> None:
    groups = vote(answers, [1.0] * len(answers))
    assert sorted(at for group in groups for at in group.members) == list(range(len(answers)))
    stated = [group for group in groups if group.answer != INVALID]
    assert groups[: len(stated)] == stated
    assert [group.weight for group in stated] == sorted(
        (float(len(group.members)) for group in stated), reverse=True
    )
