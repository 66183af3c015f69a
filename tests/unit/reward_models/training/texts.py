"""A tiny tied base and a small corpus whose rewards follow from the tokens, for these tests."""

from __future__ import annotations

import math
import random
from pathlib import Path

from reward_models.training.token_rewards import TokenRewards
from tests.contract.tiny_multifurcation import write_multifurcation

LAYERS = 2
VOCAB = 40
"""Tokens that the corpus is made of, the first few being special."""


def write_base(directory: Path) -> Path:
    return write_multifurcation(directory, layers=LAYERS).parent / "base"


def corpus(n: int, seed: int = 0) -> list[TokenRewards]:
    """Each fourth text is held out. A reward is higher for high tokens and falls with the place."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        ids = tuple(rng.randrange(4, VOCAB) for _ in range(rng.randrange(4, 12)))
        start = rng.randrange(1, 3)
        rewards = [math.nan] * start
        rewards += [ids[at] / 3 - at for at in range(start, len(ids))]
        split = "validation" if number % 4 == 3 else "train"
        found.append(TokenRewards(f"c{number}", split, ids, tuple(rewards)))
    return found
