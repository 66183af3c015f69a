"""Best-first trees: the worked example, and the best of all trees of its size."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from engines.drafters.base import ROOT, TokenTree, chain
from engines.drafters.grow import grow

TABLE = {
    (1, 2): {3: 0.6, 4: 0.3, 5: 0.1},
    (2, 3): {6: 0.9, 7: 0.1},
    (2, 4): {8: 0.5, 9: 0.5},
    (3, 6): {1: 0.7, 2: 0.3},
    (3, 7): {1: 1.0},
    (2, 5): {1: 1.0},
}
Pair = tuple[int, int]


def drafted(budget: int, **limits: float) -> TokenTree:
    return grow(
        (1, 2),
        lambda pair, least: TABLE.get(pair, {}).items(),
        lambda pair, token: (pair[1], token),
        budget_nodes=budget,
        **limits,  # type: ignore[arg-type]
    )


def test_e3_the_tree_and_its_mask() -> None:
    tree = drafted(6)
    assert tree.tokens == (3, 6, 1, 4, 2, 8)
    assert tree.parents == (ROOT, 0, 1, ROOT, 1, 3)
    probs = [math.exp(logp) for logp in tree.logps]
    assert probs == pytest.approx([0.6, 0.54, 0.378, 0.3, 0.162, 0.15], abs=1e-5)
    assert sum(probs) == pytest.approx(2.13, abs=1e-5)
    assert tree.depths == (1, 2, 3, 1, 3, 2)
    rows = ["".join(str(int(seen)) for seen in row) for row in tree.mask()]
    expected = "1000000 1100000 1110000 1111000 1000100 1110010 1000101"
    assert rows == expected.split()
    assert sum(math.exp(logp) for logp in drafted(3).logps) == pytest.approx(1.518, abs=1e-5)


def test_no_tree_of_the_same_size_is_better() -> None:
    whole = drafted(100)
    probs = [math.exp(logp) for logp in whole.logps]
    for size in range(1, 6):
        best = max(
            sum(probs[node] for node in nodes)
            for nodes in combinations(range(len(whole)), size)
            if all(whole.parents[node] in (ROOT, *nodes) for node in nodes)
        )
        assert sum(probs[:size]) == pytest.approx(best)
        assert whole.cut(size) == drafted(size)


def test_limits() -> None:
    assert len(drafted(0)) == 0
    assert max(drafted(100, max_depth=2).depths) == 2
    assert min(drafted(100, min_prob=0.2).logps) >= math.log(0.2)


def test_paths_and_chains() -> None:
    assert drafted(6).path(4) == (3, 6, 2)
    assert drafted(6).path(ROOT) == ()
    assert chain((5, 6), (-0.1, -0.2)).parents == (ROOT, 0)
