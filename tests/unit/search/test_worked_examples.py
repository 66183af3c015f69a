"""The worked examples A to F of the ETS specification."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from reward_models.base import RewardKind
from search.branch import Branch, Step, unique_tokens
from search.cover import KeepProblem, clusters_of, node_shares, solve
from search.particles import softmax
from search.run import Result, Run
from search.select import order_by_vote, rebase_counts, vote
from search.tree import SearchTree
from tests.search_harness import request, result_of
from tests.toy_engine import END, ToyEngine, ToyJudge, one_of

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
    ("rewards", "budget", "temperature", "rounded"),
    [
        ((0.9, 0.8, 0.5, 0.2), 16, 0.2, [9, 5, 1, 0]),
        ((0.9, 0.9, 0.9), 16, 0.2, [5, 5, 5]),
        ((0.95, 0.1, 0.1, 0.1), 4, 0.2, [4, 0, 0, 0]),
        ((0.7, 0.6, 0.6, 0.3), 16, 0.1, [9, 3, 3, 0]),
        ((0.5,) * 7, 16, 0.2, [2] * 7),
    ],
)
def test_a_the_papers_form_rounds_and_may_miss_the_budget(
    rewards: tuple[float, ...], budget: int, temperature: float, rounded: list[int]
) -> None:
    """Every count of ours is the rounded share, or up to one more."""
    shares = softmax(rewards, temperature)
    assert [round(budget * share) for share in shares] == rounded
    counts = rebase_counts(rewards, budget, temperature)
    assert sum(counts) == budget >= sum(rounded)
    assert all(0 <= ours - theirs <= 1 for ours, theirs in zip(counts, rounded, strict=True))
    if rewards == (0.9, 0.8, 0.5, 0.2):
        assert shares == pytest.approx([0.5643, 0.3423, 0.0764, 0.0170], abs=5e-5)


async def test_a_width_accounting() -> None:
    """Of four steps worth 0.9, 0.8, 0.8 and 0.2 the first is an end: three are shared out."""
    values = {"x": 0.9, "a\n": 0.8, "b\n": 0.8, "c\n": 0.2}

    def table(text: str) -> Mapping[str, float]:
        if not text:
            return dict.fromkeys("xabc", 0.25)
        return {"\n": 1.0} if text in "abc" else {END: 1.0}

    seen = 0
    for seed in range(40):
        engine, judge = ToyEngine(table), ToyJudge(lambda text: values.get(text, 0.5))
        run = Run(request("rebase", {"width": 4}, seed=seed), engine=engine, judge=judge)
        await run.result()
        first = [one for one in run.tree.snapshot()["nodes"] if one["depth"] == 1]
        if {one["text"] for one in first} == set(values):
            counts = [one["resampled"] or 0 for one in first if one["text"] not in ("x", "c\n")]
            (worst,) = (one for one in first if one["text"] == "c\n")
            assert (counts, worst["resampled"]) == ([2, 1], None)
            seen += 1
    assert seen


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
    assert unique_tokens(leaves) - question.num_tokens + 2 == 142  # what the reference code reports


def test_e_clusters() -> None:
    angles = np.radians([0, 10, 40, 45, 90, 20])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert clusters_of(vectors, 0.05) == [0, 0, 1, 1, 2, 0]
    assert clusters_of(vectors, 0.17) == [0, 0, 0, 0, 1, 0]
    assert clusters_of(vectors, 0.0037) == [0, 1, 2, 3, 4, 5]


def test_e_where_clusters_merge() -> None:
    angles = np.radians([0, 10, 40, 45, 90, 20])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    merged = [
        (0.0038, [0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 3, 4]),  # 40 and 45
        (0.0152, [0, 1, 2, 2, 3, 4], [0, 0, 1, 1, 2, 3]),  # 0 and 10
        (0.0377, [0, 0, 1, 1, 2, 3], [0, 0, 1, 1, 2, 0]),  # and 20
        (0.1659, [0, 0, 1, 1, 2, 0], [0, 0, 0, 0, 1, 0]),  # and 40, 45
    ]
    for distance, below, above in merged:
        assert clusters_of(vectors, distance - 1e-4) == below
        assert clusters_of(vectors, distance + 1e-4) == above


def test_e_a_zero_vector_is_a_cluster_of_its_own() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 0], [2, 0.01], [math.nan, 1]], dtype=np.float32)
    assert clusters_of(vectors, 0.05) == [0, 1, 2, 1, 3]
    assert clusters_of(vectors[:1], 0.05) == [0]


def test_f_vote() -> None:
    answers, weights = ["5", "7", "7", "3"], [0.9, 0.6, 0.5, 0.95]
    groups = vote(answers, weights)
    assert (groups[0].answer, groups[0].weight) == ("7", pytest.approx(1.1))
    assert order_by_vote(groups, weights) == [1, 2, 3, 0]


VALUES_F = {"It is 5": 0.9, "It is 7": 0.6, "So 7": 0.5, "It is 3": 0.95}


async def test_f_strategies_that_vote_and_that_do_not() -> None:
    """One seed whose four answers are those of the example, under every rule."""

    async def asked(name: str, seed: int, **params: Any) -> Result:
        engine = ToyEngine(one_of(dict.fromkeys(VALUES_F, 0.25)))
        judge = ToyJudge(lambda text: VALUES_F.get(text, 0.5), RewardKind.OUTCOME)
        given = {"width": 4, **params}
        return await result_of(engine, name, given, judge=judge, seed=seed)

    for seed in range(100):
        best = await asked("best_of_n", seed)
        if {one.content for one in best.candidates} == set(VALUES_F):
            break
    assert best.answers[0].content == "It is 3"
    voted = await asked("self_consistency", seed, vote="weighted")
    assert voted.answers[0].content == "It is 7"
    assert voted.score == pytest.approx(1.1 / 2.95, abs=1e-5)
    assert (await asked("rebase", seed)).answers[0].content == "It is 7"
