"""What the tree of diffusion tree sampling says of texts whose exact probability is known."""

import math
import random
import statistics
from collections.abc import Mapping

import pytest

from search.diffusion_tree import (
    Node,
    Rules,
    by_share,
    depart,
    land,
    revisit,
    select,
    shares,
)
from tests.toy_denoiser import sticky, texts_of

Rewards = Mapping[tuple[int, ...], float]
TABLE = sticky("abc", 0.6)
LENGTH = 4


def probability(root: Node, text: tuple[int, ...], sharpness: float) -> float:
    """That a descent ends in this text, exactly."""
    if not root.children:
        return float(root.state == text)
    values = [child.value for child in root.children]
    counts = [child.samples for child in root.children]
    found = zip(root.children, shares(values, sharpness, counts), strict=True)
    return math.fsum(share * probability(child, text, sharpness) for child, share in found)


def grown(
    rules: Rules, seed: int, iterations: int, letters: int, length: int, reward: Rewards
) -> Node:
    """A tree over uniform letters, revealed from the left, a level each."""
    rng, root = random.Random(seed), Node((), 0)
    pick = by_share(rules.sharpness, rng.random)
    for _ in range(iterations):
        path = select(root, rules, pick, fits=lambda node: True)
        if path[-1].is_end:
            revisit(path, rules)
            continue
        states = [path[-1].state]
        while len(states[-1]) < length:
            states.append((*states[-1], rng.randrange(letters)))
        depart(path)
        land(path, states[1:], reward.get(states[-1], 0.0), rules)
    return root


@pytest.mark.parametrize("merges", [pytest.param(False, marks=pytest.mark.slow), True])
def test_e4_after_2000_iterations(merges: bool) -> None:
    """The target is 4/7, the model's own probability 1/4, and the mean over 8 seeds about 0.53."""
    rules = Rules(2, 0.7, 1.0, merges)
    found = [
        probability(grown(rules, seed, 2000, 2, 2, {(0, 0): math.log(4)}), (0, 0), 1.0)
        for seed in range(8)
    ]
    assert 0.49 <= statistics.fmean(found) <= 0.58


def test_more_rollouts_come_nearer_to_the_target() -> None:
    """Total variation from p(x) exp(r(x)), on 27 texts, mean of 6 seeds."""
    reward: Rewards = {
        (a, b, c): math.sin(9 * a + 5 * b + 2 * c)
        for a in range(3)
        for b in range(3)
        for c in range(3)
    }
    masses = {text: math.exp(value) / 27 for text, value in reward.items()}
    total = math.fsum(masses.values())
    far = []
    for iterations in (20, 1500):
        distances = []
        for seed in range(6):
            root = grown(Rules(1, 0.5, 1.0, True), seed, iterations, 3, 3, reward)
            gaps = (abs(probability(root, one, 1.0) - mass / total) for one, mass in masses.items())
            distances.append(math.fsum(gaps) / 2)
        far.append(statistics.fmean(distances))
    assert far[1] < 0.6 * far[0], far


def test_the_toy_chain_is_enumerated() -> None:
    exact = texts_of(TABLE, LENGTH)
    assert math.isclose(math.fsum(exact.values()), 1.0)
    assert math.isclose(exact["aaab"], 0.6 * 0.6 * 0.2 / 3)
