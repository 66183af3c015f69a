"""pass@k, majority@k and worst@k against the mean over every subset."""

from itertools import combinations, product
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.estimators import majority_at_k, pass_at_k, worst_at_k
from search.select import vote


def test_worked_examples() -> None:
    assert pass_at_k(16, 3, 4) == pytest.approx(0.607143, abs=1e-6)
    assert worst_at_k(16, 3, 4) == 0
    assert pass_at_k(16, 12, 4) == pytest.approx(0.999451, abs=1e-6)
    assert worst_at_k(16, 12, 4) == pytest.approx(0.271978, abs=1e-6)


def test_one_sample_is_the_mean() -> None:
    for right in range(8):
        assert pass_at_k(7, right, 1) == worst_at_k(7, right, 1) == right / 7


@pytest.mark.parametrize("num_samples", [1, 4, 7])
def test_pass_and_worst_against_every_subset(num_samples: int) -> None:
    for right, k in product(range(num_samples + 1), range(1, num_samples + 1)):
        samples = [True] * right + [False] * (num_samples - right)
        subsets = list(combinations(samples, k))
        passed = sum(map(any, subsets)) / len(subsets)
        worst = sum(map(all, subsets)) / len(subsets)
        assert pass_at_k(num_samples, right, k) == pytest.approx(passed, abs=1e-12)
        assert worst_at_k(num_samples, right, k) == pytest.approx(worst, abs=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2), st.data())
@settings(max_examples=60, deadline=None)
def test_majority_against_every_subset(votes: list[int], silent: int, data: st.DataObject) -> None:
    samples = [at for at, count in enumerate(votes) for _ in range(count)] + [-1] * silent
    if not samples:
        return
    k = data.draw(st.integers(1, len(samples)))
    right = data.draw(st.integers(0, len(votes) - 1))
    won = 0.0
    for subset in combinations(samples, k):
        counts = {at: subset.count(at) for at in subset if at >= 0}
        best = [at for at, count in counts.items() if count == max(counts.values())]
        won += (right in best) / max(1, len(best))
    expected = won / comb(len(samples), k)
    assert majority_at_k(votes, right, k, silent=silent) == pytest.approx(expected, abs=1e-12)


def test_ties_are_what_the_vote_makes_of_random_orders() -> None:
    """`search.select.vote` breaks ties by order; over all orders that is an equal share."""
    right = 0
    for answers in ("0011", "0012", "0122", "012"):
        counts = [answers.count(name) for name in "012"]
        orders = {order for order in product(range(len(answers)), repeat=len(answers))}
        orders = {order for order in orders if len(set(order)) == len(order)}
        wins = sum(
            vote([answers[at] for at in order], [1.0] * len(order))[0].answer == str(right)
            for order in orders
        )
        found = majority_at_k(counts, right, len(answers))
        assert found == pytest.approx(wins / len(orders), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_three_are_unbiased(k: int) -> None:
    """Their expectation over n = 4 draws of a known model is what k draws of it do."""
    model = {0: 0.5, 1: 0.3, 2: 0.2}

    def expected(n: int, k: int) -> tuple[float, float, float]:
        sums = [0.0, 0.0, 0.0]
        for drawn in product(model, repeat=n):
            mass = 1.0
            for answer in drawn:
                mass *= model[answer]
            votes = [drawn.count(answer) for answer in model]
            sums[0] += mass * pass_at_k(n, votes[0], k)
            sums[1] += mass * worst_at_k(n, votes[0], k)
            sums[2] += mass * majority_at_k(votes, 0, k)
        return sums[0], sums[1], sums[2]

    assert expected(4, k) == pytest.approx(expected(k, k), abs=1e-12)
    assert expected(4, k)[:2] == pytest.approx((1 - 0.5**k, 0.5**k), abs=1e-12)


def test_nobody_right_and_nobody_speaking() -> None:
    assert majority_at_k([3, 1], None, 2) == 0
    assert majority_at_k([0], 0, 2, silent=3) == 0
    assert majority_at_k([40, 24], 0, 64) == 1


@pytest.mark.parametrize("counts", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_counts_that_no_samples_have(counts: tuple[int, int, int]) -> None:
    for estimate in (pass_at_k, worst_at_k):
        with pytest.raises(ValueError, match="say nothing of"):
            estimate(*counts)


@pytest.mark.parametrize(("votes", "right", "k"), [([2, -1], 0, 1), ([2], 1, 1), ([2], 0, 3)])
def test_votes_that_no_samples_have(votes: list[int], right: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"no answer|say nothing of"):
        majority_at_k(votes, right, k)
