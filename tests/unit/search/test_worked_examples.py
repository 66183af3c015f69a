"""The worked examples A to F of the ETS specification."""

import itertools
import math

import numpy as np
import pytest

from search.branch import Branch, Step, unique_tokens
from search.cover import KeepProblem, clusters_of, node_shares, solve
from search.select import order_by_vote, rebase_counts, vote
from search.tree import SearchTree

PATHS = ((0, 1, 11), (0, 1, 12), (0, 1, 13), (0, 2, 14), (0, 2, 15), (0, 3, 16))
CLUSTERS = (0, 0, 1, 0, 0, 2)
REWARDS_B = (0.90, 0.85, 0.80, 0.75, 0.50, 0.60)
REWARDS_C = (0.90, 0.85, 0.60, 0.80, 0.55, 0.50)


@pytest.mark.parametrize(
    ("rewards", "budget", "temperature", "counts"),
    [
        ((0.9, 0.8, 0.5, 0.2), 16, 0.2, [10, 5, 1, 0]),
        ((0.9, 0.9, 0.9), 16, 0.2, [6, 5, 5]),
        ((0.95, 0.1, 0.1, 0.1), 4, 0.2, [4, 0, 0, 0]),
        ((0.7, 0.6, 0.6, 0.3), 16, 0.1, [10, 3, 3, 0]),
        ((0.5,) * 7, 16, 0.2, [3, 3, 2, 2, 2, 2, 2]),
        ((0.8, 0.8, 0.2), 3, 0.2, [2, 1, 0]),
    ],
)
def test_a_allocation(
    rewards: tuple[float, ...], budget: int, temperature: float, counts: list[int]
) -> None:
    assert rebase_counts(rewards, budget, temperature) == counts


@pytest.mark.parametrize(
    ("rewards", "lambda_b", "lambda_d", "kept", "objective", "final"),
    [
        (REWARDS_B, 1.0, 0.0, [0, 1, 2], 0.250000, [7, 6, 3]),
        (REWARDS_B, 1.0, 1.0, [0, 1, 2, 5], 1.112500, [7, 5, 3, 1]),
        (REWARDS_B, 1.0, 1.5, [0, 1, 2, 5], 1.612500, [7, 5, 3, 1]),
        (REWARDS_B, 2.0, 1.0, [0, 1, 2], 0.416667, [7, 6, 3]),
        (REWARDS_C, 1.0, 1.0, [0, 1, 2, 5], 1.05, [8, 6, 2, 0]),
        (REWARDS_C, 2.0, 1.0, [0, 1, 2], 0.416667, [8, 7, 1]),
        (REWARDS_C, 1.0, 0.0, [0, 1], 0.2875, [9, 7]),
    ],
)
def test_b_and_c_integer_program(
    rewards: tuple[float, ...],
    lambda_b: float,
    lambda_d: float,
    kept: list[int],
    objective: float,
    final: list[int],
) -> None:
    problem = KeepProblem(
        weights=rebase_counts(rewards, 16, 0.2),
        paths=PATHS,
        clusters=CLUSTERS if lambda_d else (),
        lambda_b=lambda_b,
        lambda_d=lambda_d,
    )
    assert solve(problem) == kept
    assert problem.objective(kept) == pytest.approx(objective, abs=1e-6)
    assert rebase_counts([rewards[at] for at in kept], 16, 0.2) == final


def test_b_weights_and_runners_up() -> None:
    weights = rebase_counts(REWARDS_B, 16, 0.2)
    assert weights == [5, 4, 3, 3, 0, 1]
    assert rebase_counts(REWARDS_C, 16, 0.2) == [6, 5, 1, 3, 1, 0]
    for lambda_b, lambda_d, runner_up, worth in [
        (1.0, 0.0, (0, 1, 2, 3), 0.2375),
        (1.0, 1.0, (0, 1, 2, 3, 5), 1.1),
        (1.0, 1.5, (0, 1, 2, 3, 5), 1.6),
        (2.0, 1.0, (0, 1, 2, 5), 0.4125),
    ]:
        clusters = CLUSTERS if lambda_d else ()
        problem = KeepProblem(weights, PATHS, clusters, lambda_b, lambda_d)
        best = solve(problem)
        assert best is not None
        assert problem.objective(runner_up) == pytest.approx(worth, abs=1e-9)
        others = [
            kept
            for size in range(1, 7)
            for kept in itertools.combinations(range(6), size)
            if list(kept) != best
        ]
        assert max(map(problem.objective, others)) == pytest.approx(worth, abs=1e-9)


def test_b_and_d_nodes_that_cost_by_their_tokens() -> None:
    tokens = (30, 20, 25, 10, 12, 8, 15, 9, 11)  # A, B, C, l1 ... l6: 140 together, the root free
    costs = node_shares(dict(zip((1, 2, 3, 11, 12, 13, 14, 15, 16), tokens, strict=True)))
    weights = rebase_counts(REWARDS_B, 16, 0.2)
    problem = KeepProblem(weights, PATHS, CLUSTERS, 1.0, 1.0, costs)
    kept = solve(problem)
    assert kept == [0, 1, 2, 5]
    # 13/16 of the weight; A, C, l1, l2, l3, l6 are 96 of 140 tokens; all clusters
    assert problem.objective(kept) == pytest.approx(13 / 16 - 96 / 140 + 1)
    # at a higher price C with l6, 36 tokens, is not worth its cluster any more
    dear = KeepProblem(weights, PATHS, CLUSTERS, 2.0, 1.0, costs)
    assert solve(dear) == [0, 1, 2]
    assert (problem.num_nodes(kept), problem.num_clusters(kept)) == (7, 3)
    assert node_shares({1: 0}) is None


def test_d_kv_tokens() -> None:
    tree = SearchTree()

    def grow(parent: Branch, tokens: int) -> Branch:
        return tree.add(parent, Step("x" * tokens, tuple(range(tokens))))

    question = grow(tree.root, 40)
    a, b, c = (grow(question, tokens) for tokens in (30, 20, 25))
    leaves = [
        grow(parent, tokens)
        for parent, tokens in zip((a, a, a, b, b, c), (10, 12, 8, 15, 9, 11), strict=True)
    ]
    assert unique_tokens(leaves) == 180
    assert sum(leaf.num_tokens for leaf in leaves) == 460
    assert unique_tokens([leaves[at] for at in (0, 1, 2, 5)]) == 136
    assert unique_tokens(leaves[:2]) == 92


def test_e_clusters() -> None:
    angles = np.radians([0, 10, 40, 45, 90, 20])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert clusters_of(vectors, 0.05) == [0, 0, 1, 1, 2, 0]
    assert clusters_of(vectors, 0.17) == [0, 0, 0, 0, 1, 0]
    assert clusters_of(vectors, 0.0037) == [0, 1, 2, 3, 4, 5]


def test_e_a_zero_vector_is_a_cluster_of_its_own() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 0], [2, 0.01], [math.nan, 1]], dtype=np.float32)
    assert clusters_of(vectors, 0.05) == [0, 1, 2, 1, 3]
    assert clusters_of(vectors[:1], 0.05) == [0]


def test_f_vote() -> None:
    answers, weights = ["5", "7", "7", "3"], [0.9, 0.6, 0.5, 0.95]
    groups = vote(answers, weights)
    assert (groups[0].answer, groups[0].weight) == ("7", pytest.approx(1.1))
    assert order_by_vote(groups, weights) == [1, 2, 3, 0]
    assert max(zip(weights, answers, strict=True))[1] == "3"
