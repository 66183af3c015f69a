"""The peers' choice of tokens, which is theirs and must be ours."""

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the embedded engine")

import torch

from engines.base import NextTokens
from loadtests.bench.safety_peers import nuclei
from search.nucleus import banned_mass, mass_beside, nucleus

SIZE = 12


def listing(shares: np.ndarray, mass: float) -> NextTokens:
    """The likeliest tokens that hold `mass`, as an engine lists them."""
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    ids = [int(one) for one in order[before < mass]]
    tail = 0.0 if len(ids) == SIZE else 1.0 - float(shares[ids].sum())
    return NextTokens(tuple(ids), tuple(math.log(shares[one]) for one in ids), tail)


def ours(shares: np.ndarray, top_p: float, banned: frozenset[int]) -> list[int]:
    """By the strategy's own functions: listed again, further, until there is enough."""
    row = listing(shares, top_p)
    while (found := nucleus(row, top_p, banned)) is None:
        mass = mass_beside(top_p, banned_mass(row, banned))
        row = listing(shares, math.inf if mass == 1.0 else mass)
    return list(found.ids)


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("num_banned", [0, 1, 3])
def test_peers_propose_what_we_do(spread: float, top_p: float, num_banned: int) -> None:
    draw = np.random.default_rng([int(10 * spread), int(100 * top_p), num_banned])
    shares = draw.dirichlet(np.full(SIZE, spread), 200) + 1e-12
    shares /= shares.sum(1, keepdims=True)
    banned = frozenset(int(one) for one in draw.choice(SIZE, num_banned, replace=False))
    is_banned = torch.tensor([one in banned for one in range(SIZE)])
    theirs = nuclei(torch.from_numpy(shares), top_p, is_banned)
    for row, ids in zip(shares, theirs, strict=True):
        assert ids.tolist() == ours(row, top_p, banned)
