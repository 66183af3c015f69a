"""The worked examples of diffusion tree sampling, and its tree against the plain algorithm."""

import math
import random
from collections.abc import Sequence

import pytest

from engines.base import TokenIds
from search.diffusion_tree import (
    Node,
    Rules,
    branch_levels,
    by_share,
    by_uct,
    by_value,
    capacity,
    depart,
    descend,
    give_up,
    is_full,
    land,
    revalue,
    revisit,
    select,
    shares,
    soft_value,
    uct,
    widening_for,
)

VALUES = [0.2, 0.8, -1.0]
INF = math.inf


@pytest.mark.parametrize(
    ("sharpness", "worth"), [(0.1, 0.027714), (1, 0.240282), (10, 0.690386), (1000, 0.798901)]
)
def test_e1_backup(sharpness: float, worth: float) -> None:
    assert soft_value(VALUES, sharpness) == pytest.approx(worth, abs=1e-5)


def test_e1_selection() -> None:
    assert shares(VALUES, 1) == pytest.approx([0.320173, 0.583393, 0.096434], abs=1e-5)
    assert shares(VALUES, 10) == pytest.approx([0.002473, 0.997527, 0], abs=1e-5)
    assert shares([1.0, 3.0, 3.0], INF) == [0, 1, 0]
    assert soft_value(VALUES, INF) == 0.8


def test_e1_far_from_zero() -> None:
    """In log space nothing overflows, and nothing underflows to a logarithm of 0."""
    far = [value - 5000 for value in VALUES]
    assert soft_value(far, 10) == pytest.approx(0.690386 - 5000)
    assert shares([one + 9000 for one in VALUES], 1) == pytest.approx(shares(VALUES, 1))


def test_e2_capacity() -> None:
    found = [capacity(visits, 2, 0.7) for visits in range(1, 7)]
    assert found == pytest.approx([2, 3.2490, 4.3153, 5.2780, 6.1703, 7.0103], abs=1e-4)


@pytest.mark.parametrize(("exponent", "first"), [(0.7, 14), (0.8, 37)])
def test_e2_widening(exponent: float, first: int) -> None:
    """The first iteration that does not branch off at the root."""
    rules, root = Rules(2, exponent, INF), Node((), 0)
    iteration = 1
    while (path := select(root, rules, by_value, fits=lambda node: True)) == [root]:
        depart(path)
        land(path, [(iteration,)], 0.0, rules)
        iteration += 1
    assert iteration == first
    assert len(root.children) == first - 1
    assert root.visits == first


@pytest.mark.parametrize(
    ("bonus", "bounds", "picked"),
    [
        (0.1, (0.563432, 0.526864), 0),
        (0.2, (0.626864, 0.653727), 1),
        (0.05, (0.531716, 0.463432), 0),
    ],
)
def test_e3_uct(bonus: float, bounds: tuple[float, float], picked: int) -> None:
    root = Node((), 0, visits=5)
    root.children = [
        Node((0,), 1, True, root, value=0.5, visits=4),
        Node((1,), 1, True, root, value=0.4),
    ]
    found = [uct(one.value, one.visits, root.visits, bonus) for one in root.children]
    assert found == pytest.approx(bounds, abs=1e-5)
    assert by_uct(lambda: bonus)(root) is root.children[picked]


def whole_tree(sharpness: float) -> Node:
    """E4: all four texts of two letters once, r(aa) = ln 4 and 0 for the others."""
    rules, root = Rules(2, 0.7, sharpness, merges=True), Node((), 0)
    for first in (0, 1):
        for second in (0, 1):
            reward = math.log(4) if first == second == 0 else 0.0
            depart([root])
            land([root], [(first,), (first, second)], reward, rules)
    return root


def test_e4_exact_values() -> None:
    root = whole_tree(1.0)
    a, b = root.children
    assert root.value == pytest.approx(0.559616, abs=1e-5)
    assert a.value == pytest.approx(0.916291, abs=1e-5)
    assert b.value == pytest.approx(0, abs=1e-5)
    down = shares([a.value, b.value], 1.0, [a.samples, b.samples])[0]
    end = shares([one.value for one in a.children], 1.0)[0]
    assert (down, end) == pytest.approx((5 / 7, 4 / 5))
    assert down * end == pytest.approx(4 / 7)


def test_e4_draws() -> None:
    """4/7 of 4000 draws, within 4.5 standard deviations: a false alarm in 150 000."""
    root, rng = whole_tree(1.0), random.Random(1)
    pick = by_share(1.0, rng.random)
    hits = sum(descend(root, pick) is root.children[0].children[0] for _ in range(4000))
    assert hits / 4000 == pytest.approx(4 / 7, abs=4.5 * math.sqrt(12 / 49 / 4000))


def test_e5_multiplicity() -> None:
    ln3 = math.log(3)
    assert soft_value([ln3, ln3, 0], 1) == pytest.approx(0.847298, abs=1e-5)
    assert soft_value([ln3, 0], 1, [2, 1]) == pytest.approx(0.847298, abs=1e-5)
    assert soft_value([ln3, 0], 1) == pytest.approx(0.693147, abs=1e-5)
    assert shares([ln3, 0], 1, [2, 1]) == pytest.approx([6 / 7, 1 / 7])


def test_equal_children_are_one_that_counts_twice() -> None:
    rules, root = Rules(9, 0.7, 1.0, merges=True), Node((), 0)
    for letter, reward in ((0, math.log(3)), (0, math.log(3)), (1, 0.0)):
        depart([root])
        land([root], [(letter,)], reward, rules)
    assert [child.samples for child in root.children] == [2, 1]
    assert [child.visits for child in root.children] == [2, 1]
    assert root.num_drawn == 3
    assert root.value == pytest.approx(0.847298, abs=1e-5)


def plain(
    chain: Sequence[int], rules: Rules, bonus: float | None, seed: int, iterations: int
) -> list[tuple[TokenIds, float, int, int]]:
    """Algorithm 1 with its own nodes: dictionaries, no flights. `chain` has the letters by level.

    Returns:
        State, value, visits and children of every node, parents first.
    """
    draws, picks = random.Random(f"draws {seed}"), random.Random(f"picks {seed}")
    lam = rules.sharpness
    root: dict = {"state": (), "v": 0.0, "N": 1, "children": []}  # type: ignore[type-arg]
    for _ in range(iterations):
        x, path = root, [root]
        while len(x["state"]) < len(chain) and (
            len(x["children"]) >= rules.growth * x["N"] ** rules.exponent
        ):
            if bonus is None:
                top = max(child["v"] for child in x["children"])
                weights = [math.exp(lam * (child["v"] - top)) for child in x["children"]]
                left, total, at = picks.random(), math.fsum(weights), 0
                while (left := left - weights[at] / total) >= 0:
                    at += 1
                child = x["children"][at]
            else:
                child = max(
                    x["children"],
                    key=lambda c: c["v"] + bonus * math.sqrt(math.log(x["N"]) / c["N"]),
                )
            x = child
            path.append(x)
        if len(x["state"]) == len(chain):
            x["N"] += 1
        while len(x["state"]) < len(chain):
            state = (*x["state"], draws.randrange(chain[len(x["state"])]))
            child = {"state": state, "v": 0.0, "N": 1, "children": []}
            x["children"].append(child)
            x = child
            path.append(x)
        x["v"] = reward_of(x["state"])
        for y in reversed(path[:-1]):
            values = [child["v"] for child in y["children"]]
            top = max(values)
            mean = math.fsum(math.exp(lam * (v - top)) for v in values) / len(values)
            y["v"] = top if math.isinf(lam) else top + math.log(mean) / lam
            y["N"] += 1
    stack, found = [root], []
    while stack:
        node = stack.pop()
        found.append((node["state"], node["v"], node["N"], len(node["children"])))
        stack += reversed(node["children"])
    return found


def reward_of(state: TokenIds) -> float:
    return math.sin(sum((at + 1) * 7.3 * token for at, token in enumerate(state)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rules", "bonus"),
    [
        (Rules(2, 0.7, 1.0), None),
        (Rules(1, 0.5, 5.0), None),
        (Rules(1, 0.5, INF), 0.3),
        (Rules(2, 0.5, 3.0), 0.1),
        (Rules(0.4, 0.9, INF), 1.0),
    ],
)
def test_one_rollout_at_a_time_is_the_plain_algorithm(
    rules: Rules, bonus: float | None, seed: int
) -> None:
    chain = [3, 2, 4]
    draws, picks = random.Random(f"draws {seed}"), random.Random(f"picks {seed}")
    pick = by_share(rules.sharpness, picks.random) if bonus is None else by_uct(lambda: bonus)
    root = Node((), 0)
    for _ in range(300):
        path = select(root, rules, pick, fits=lambda node: True)
        if path[-1].is_end:
            revisit(path, rules)
            continue
        states = [path[-1].state]
        while len(states[-1]) < len(chain):
            states.append((*states[-1], draws.randrange(chain[len(states[-1])])))
        depart(path)
        land(path, states[1:], reward_of(states[-1]), rules)
    found = [(one.state, one.value, one.visits, len(one.children)) for one in root.nodes]
    assert found == plain(chain, rules, bonus, seed, 300)


def test_flights_are_visits_and_children_until_they_land() -> None:
    rules, root = Rules(1, 0.5, INF), Node((), 0)
    path = select(root, rules, by_value, fits=lambda node: True)
    depart(path)
    depart(path)
    assert (root.inflight, root.num_drawn) == (2, 2)
    assert is_full(root, rules)  # 2 children on their way, 3^0.5 allowed
    assert select(root, rules, by_value, fits=lambda node: True) == [root]  # nowhere to go through
    give_up(path)
    end = land(path, [(4,), (4, 2)], 0.5, rules)
    assert [*end.upwards] == [end, root.children[0], root]
    assert (root.inflight, root.num_drawn, root.visits, root.value) == (0, 1, 2, 0.5)
    assert (root.children[0].visits, end.visits) == (2, 1)


def test_virtual_visits_spread_the_rollouts() -> None:
    rules, root = Rules(1, 0.1, INF), Node((), 0)
    for letter, reward in ((0, 0.6), (1, 0.5)):
        depart([root])
        land([root], [(letter,), (letter, 0), (letter, 0, 0)], reward, rules)
    pick = by_uct(lambda: 0.5)
    seen = []
    for _ in range(4):
        path = select(root, rules, pick, fits=lambda node: True)
        depart(path)
        seen.append(path[1].state)
    assert set(seen) == {(0,), (1,)}
    first = select(root, rules, by_value, fits=lambda node: True)[1]
    assert first.state == (0,)  # without the bonus flights change nothing


def test_what_cannot_be_paid_is_gone_through() -> None:
    rules, root = Rules(9, 0.7, INF), Node((), 0)
    depart([root])
    end = land([root], [(0,), (0, 1)], 1.0, rules)
    assert select(root, rules, by_value, fits=lambda node: node.level > 0) == [root, end.parent]
    assert select(root, rules, by_value, fits=lambda node: False) == [*end.upwards][::-1]


def test_values_anew() -> None:
    root = whole_tree(1.0)
    revalue(root, Rules(2, 0.7, INF))
    assert root.value == root.children[0].value == math.log(4)
    assert root.children[1].value == 0
    revalue(root, Rules(2, 0.7, 1.0))
    assert root.value == pytest.approx(0.559616, abs=1e-5)


def test_an_empty_tree_has_no_text() -> None:
    assert descend(Node((), 0), by_value) is None


def test_levels_of_the_paper() -> None:
    assert branch_levels(64) == (64, 54, 44, 34, 24, 14)
    assert branch_levels(32) == (32, 27, 22, 17, 12, 7)
    assert branch_levels(2) == (2, 1)
    assert branch_levels(32, surest_first=True) == (32, 27, 22, 17, 12, 7, 4, 2)
    assert branch_levels(32, [16], surest_first=True) == (32, 16)
    assert branch_levels(1) == (1,)
    assert branch_levels(100, [80, 60, 100, 60]) == (100, 80, 60)
    assert branch_levels(50, []) == (50,)
    for wrong in ([0], [51], [-1, 20]):
        with pytest.raises(ValueError, match="from 1 to 50"):
            branch_levels(50, wrong)


def test_small_budgets_descend_early() -> None:
    assert widening_for(13) == (1.0, 0.5)
    assert widening_for(4096) == (2.0, 0.7)
