"""Claimed cache, decode step by decode step."""

import pytest

from engines.base import Finish
from loadtests.bench.kv_trace import kv_trace
from search.branch import Branch, Step


class Grown:
    """Builds branches."""

    def __init__(self) -> None:
        self.root = Branch(0, None, 0, (), Step(""))
        self.branches = [self.root]

    def child(self, parent: Branch, ids: tuple[int, ...], finish: Finish | None = None) -> Branch:
        number = len(self.branches)
        step = Step("x", token_ids=ids, finish=finish)
        size = parent.num_tokens + len(ids)
        branch = Branch(number, parent, parent.depth + 1, (number,), step, size, size)
        self.branches.append(branch)
        return branch


def test_children_in_flight_count_their_tokens_and_keep_them_at_a_step_end() -> None:
    tree = Grown()
    tree.child(tree.root, (1, 2))
    tree.child(tree.root, (3, 4, 5))
    trace = kv_trace(tree.branches, prompt_tokens=10)
    # 1 + 1, 2 + 2, 2 + 3 beside the prompt
    assert (trace.steps, trace.peak) == (3, 15)
    assert trace.mean == pytest.approx((12 + 14 + 15) / 3)


def test_what_finished_claims_nothing_any_more_and_neither_does_its_path() -> None:
    tree = Grown()
    left = tree.child(tree.root, (1,))
    right = tree.child(tree.root, (2, 2, 2))
    tree.child(left, (5,), Finish.STOP)
    tree.child(right, (6, 6), Finish.STOP)
    trace = kv_trace(tree.branches, prompt_tokens=0)
    # level 1: 1+1, 1+2, 1+3; level 2: paths 1+3 and a token each, then 3 and 2
    assert trace.mean == pytest.approx((2 + 3 + 4 + 6 + 5) / 5)


def test_a_branch_that_got_no_continuation_is_not_claimed_on_the_next_level() -> None:
    tree = Grown()
    kept = tree.child(tree.root, (1,))
    tree.child(tree.root, (2, 2, 2, 2))
    tree.child(kept, (7,))
    trace = kv_trace(tree.branches, prompt_tokens=0)
    assert trace.mean == pytest.approx((2 + 3 + 4 + 5 + 2) / 5)


def test_equal_tokens_after_equal_tokens_are_kept_once_where_that_is_wanted() -> None:
    tree = Grown()
    twins = [tree.child(tree.root, (1, 2)) for _ in range(2)]
    for twin in twins:
        tree.child(twin, (3,))
    by_branch = kv_trace(tree.branches, prompt_tokens=0)
    assert by_branch.mean == pytest.approx((2 + 4 + 6) / 3)
    by_content = kv_trace(tree.branches, prompt_tokens=0, merged=True)
    # drawn apart, kept as one: 1+1, 2+2, then a path of 2 and a token each
    assert by_content.mean == pytest.approx((2 + 4 + 4) / 3)


def test_a_tree_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no branch with tokens"):
        kv_trace(Grown().branches, 5)
