"""Acceptance: the worked examples, and the exact and the drawn distribution of a toy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import chisquare

from engines.drafters.base import EMPTY, ROOT, TokenTree
from engines.drafters.verify import greedy_walk, published_walk, walk

PAIR = TokenTree((0, 1), (ROOT, ROOT), (-1.0, -1.5))
ROWS = ((0,), (1,))
TREE = TokenTree((0, 1, 2, 0, 1), (ROOT, 0, 0, 1, ROOT), (0.0,) * 5)
LENGTH = 4


def target(context: tuple[int, ...]) -> np.ndarray:
    """A toy over three tokens: every context of the answer has a distribution of its own."""
    seed = [7, *context]
    return np.random.default_rng(seed).dirichlet([0.7, 1.0, 1.3])


def exact() -> dict[tuple[int, ...], float]:
    found = {}
    for text in itertools.product(range(3), repeat=LENGTH):
        found[text] = float(np.prod([target(text[:i])[t] for i, t in enumerate(text)]))
    return found


def trees(context: tuple[int, ...]) -> TokenTree:
    """Drafts that depend on the context, and are right and wrong in turn."""
    return (TREE, PAIR, EMPTY, TokenTree((2, 2, 1), (ROOT, 0, 1), (0.0,) * 3))[sum(context) % 4]


def answer(draw: Callable[[tuple[int, ...]], int], *, published: bool) -> tuple[int, ...]:
    text: tuple[int, ...] = ()
    while len(text) < LENGTH:
        tree, so_far = trees(text), text

        def at(node: int, tree: TokenTree = tree, so_far: tuple[int, ...] = so_far) -> int:
            return draw((*so_far, *tree.path(node)))

        leaves = [n for n in range(len(tree)) if n not in tree.parents]
        rows = [route(tree, leaf) for leaf in leaves]
        done = published_walk(rows, tree, at) if published else walk(tree, at)
        text = (*text, *done.emitted)
    return text[:LENGTH]


def route(tree: TokenTree, node: int) -> tuple[int, ...]:
    return () if node == ROOT else (*route(tree, tree.parents[node]), node)


def p_value(*, published: bool, num: int) -> float:
    """Chi-square of `num` drawn answers against the exact distribution."""
    rng = np.random.default_rng(11)
    known: dict[tuple[int, ...], np.ndarray] = {}

    def draw(context: tuple[int, ...]) -> int:
        if context not in known:
            known[context] = target(context).cumsum()
        return min(2, int(known[context].searchsorted(rng.random(), "right")))

    counts = dict.fromkeys(exact(), 0)
    for _ in range(num):
        counts[answer(draw, published=published)] += 1
    expected = np.array(list(exact().values())) * num
    seen = np.array(list(counts.values()), dtype=float)
    small = expected < 5
    seen, expected = (np.append(a[~small], a[small].sum()) for a in (seen, expected))
    return float(chisquare(seen, expected * (seen.sum() / expected.sum())).pvalue)


def test_drawn_answers_have_the_targets_distribution() -> None:
    """False alarms: 1e-4, with a fixed seed."""
    assert p_value(published=False, num=12_000) > 1e-4


def test_the_published_rule_has_not() -> None:
    assert p_value(published=True, num=12_000) < 1e-6


def outcomes(tree: TokenTree, above: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every possible result of `walk` with its exact probability."""
    for drawn in itertools.product(range(3), repeat=len(tree) + 1):
        visited: list[int] = []

        def draw(node: int, drawn: tuple[int, ...] = drawn, visited: list[int] = visited) -> int:
            visited.append(node)
            return drawn[node + 1]

        done = walk(tree, draw)
        assert len(set(visited)) == len(visited) == len(done.emitted)
        prob = float(np.prod([target((*above, *tree.path(n)))[drawn[n + 1]] for n in visited]))
        unseen = 3 ** (len(tree) + 1 - len(visited))
        yield done.emitted, prob / unseen


@pytest.mark.parametrize("tree", [TREE, PAIR, EMPTY])
def test_every_outcome_has_exactly_its_probability(tree: TokenTree) -> None:
    sums: dict[tuple[int, ...], float] = {}
    for emitted, prob in outcomes(tree, (1,)):
        sums[emitted] = sums.get(emitted, 0.0) + prob
    for emitted, prob in sums.items():
        plain = np.prod([target((1, *emitted[:i]))[t] for i, t in enumerate(emitted)])
        assert prob == pytest.approx(plain, abs=1e-12)
    assert sum(sums.values()) == pytest.approx(1.0)


def emission(rule: str) -> list[float]:
    """Probability of each first token with the drafts a and b, target (.3, .2, .5)."""
    probs, sums = (0.3, 0.2, 0.5), [0.0, 0.0, 0.0]
    for drawn in itertools.product(range(3), repeat=3):
        feed = iter((*drawn, 0))  # what follows an accepted token is not looked at

        def draw(node: int, feed: Iterator[int] = feed) -> int:
            return next(feed)

        done = published_walk(ROWS, PAIR, draw) if rule == "published" else walk(PAIR, draw)
        sums[done.emitted[0]] += float(np.prod([probs[token] for token in drawn]))
    return sums


def test_e4_the_published_rule_favours_what_was_drafted() -> None:
    assert emission("published") == pytest.approx([0.468, 0.252, 0.280], abs=1e-5)
    assert emission("one draw") == pytest.approx([0.3, 0.2, 0.5], abs=1e-5)


def test_e3_greedy_verification() -> None:
    tree = TokenTree((3, 6, 1, 4, 7, 8), (ROOT, 0, 1, ROOT, 0, 3), (0.0,) * 6)
    done = greedy_walk(tree, (4, 6, 1, 9, 0, 0, 0))
    assert done.nodes == (3,)
    assert done.emitted == (4, 0)


def test_the_whole_path_and_nothing_can_be_accepted() -> None:
    tree = TokenTree((3, 6), (ROOT, 0), (0.0, 0.0))
    assert greedy_walk(tree, (3, 6, 9)).emitted == (3, 6, 9)
    assert greedy_walk(tree, (5, 6, 9)).emitted == (5,)
    assert greedy_walk(EMPTY, (5,)).emitted == (5,)
