"""PUCT by hand, and its bookkeeping against counting everything anew."""

import math
import random

import pytest

from search.puct import Backup, Node, deliver, depart, score, select


def family() -> tuple[Node, Node, Node]:
    """A root with two children of values 0.9 and 0.5 and priors 1/4 and 3/4."""
    root = Node(value=0.0, visits=0)
    assert select(root, 1.0, "mean") is root
    depart(root, 4)
    a, b = Node(0.9, 0.25, root), Node(0.5, 0.75, root)
    deliver(root, 4, [a, b])
    return root, a, b


def test_a_choice_by_hand() -> None:
    root, a, b = family()
    assert (root.visits, root.total, root.best, root.num_open) == (2, 1.4, 0.9, 2)
    # Q + c P sqrt(2) / 2: 0.9 + 0.1768 c against 0.5 + 0.5303 c, equal at c = 1.1314
    assert score(a, 1.0, "mean") == pytest.approx(0.9 + 0.25 * math.sqrt(2) / 2)
    assert score(b, 1.0, "mean") == pytest.approx(0.5 + 0.75 * math.sqrt(2) / 2)
    assert select(root, 1.1, "mean") is a
    assert select(root, 1.2, "mean") is b


@pytest.mark.parametrize(("backup", "chosen"), [("mean", "b"), ("max", "a")])
def test_the_backup_decides_what_a_node_is_worth(backup: Backup, chosen: str) -> None:
    root, a, b = family()
    depart(a, 4)
    deliver(a, 4, [Node(0.1, 1 / 3, a), Node(0.2, 1 / 3, a), Node(0.0, 1 / 3, a)])
    # a: four values of mean 0.3 and maximum 0.9; b: one of 0.5
    assert (a.visits, a.worth("mean"), a.worth("max")) == (4, pytest.approx(0.3), 0.9)
    leaf = select(root, 0.0, backup)
    assert leaf is not None
    assert leaf is b if chosen == "b" else leaf is a.children[1]


def test_the_virtual_loss_sends_the_next_selection_elsewhere() -> None:
    root, a, b = family()
    depart(a, 4)
    deliver(a, 4, [Node(0.9, 0.5, a), Node(0.8, 0.5, a)])
    first = select(root, 0.0, "mean")
    assert first is a.children[0]
    depart(first, 4)
    # a: 2.6 over 3 values and 4 in flight is 0.371; b: 0.5
    assert a.worth("mean") == pytest.approx(2.6 / 7)
    assert select(root, 0.0, "mean") is b
    assert select(root, 0.0, "max") is a.children[1]  # the largest value stays the largest
    deliver(first, 4, [])
    assert a.worth("mean") == pytest.approx(2.6 / 3)
    assert root.virtual == a.virtual == first.virtual == 0
    assert select(root, 0.0, "mean") is a.children[1]


def test_ties_go_to_the_first_and_nothing_open_is_none() -> None:
    root = Node(value=0.0, visits=0)
    depart(root, 2)
    one, other = Node(0.5, 0.5, root), Node(0.5, 0.5, root, is_open=False)
    same = Node(0.5, 0.5, root)
    deliver(root, 2, [one, other, same])
    for expected in (one, same, None):
        leaf = select(root, 1.0, "mean")
        assert leaf is expected
        if leaf is not None:
            depart(leaf, 2)


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_the_subtree(seed: int) -> None:
    rng = random.Random(seed)
    root = Node(value=0.0, visits=0)
    every, flying = [root], []
    for _ in range(40):
        leaf = select(root, rng.choice([0.0, 1.0]), rng.choice(["mean", "max"]))
        if leaf is not None and rng.random() < 0.6:
            depart(leaf, 3)
            flying.append(leaf)
        elif flying:
            leaf = flying.pop(rng.randrange(len(flying)))
            count = rng.randint(0, 3)
            born = [Node(rng.random(), 1 / 3, leaf, rng.random() < 0.8) for _ in range(count)]
            deliver(leaf, 3, born)
            every += born
        for node in every:
            below = [one for one in every if node in one.upwards]
            judged = [one for one in below if one is not root]
            assert node.visits == len(judged)
            assert node.total == pytest.approx(sum(one.value for one in judged))
            assert node.best == max([0.0, *(one.value for one in judged)])
            assert node.num_open == sum(one.is_open for one in below)
            assert node.virtual == 3 * sum(one in flying for one in below)
