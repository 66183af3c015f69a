"""Schedules against the worked examples of the papers' samplers, and walks over them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from engines.diffusion.base import DenoiseJob, Kernel, frozen_prompt
from engines.diffusion.kernels import (
    Need,
    Walk,
    dream_count,
    llada_count,
    mdlm_chance,
    origin_chance,
)

MASK = 9
PROMPT = (4, 5)


def job(kernel: Kernel, length: int = 8, seed: int = 0) -> DenoiseJob:
    return DenoiseJob(
        tokens=PROMPT + (MASK,) * length,
        frozen_mask=frozen_prompt(len(PROMPT), length),
        step=0,
        stop_step=kernel.steps,
        seed=seed,
        temperature=1.0,
        kernel=kernel,
    )


def answered(walk: Walk, need: Need) -> None:
    """Reveal token 1 everywhere; later positions are surer."""
    size = len(need.positions)
    walk.reveal(np.full(size, 1), np.full(size, -0.5), np.arange(size, dtype=float))


def test_mdlm_chances() -> None:
    assert mdlm_chance(0, 64) == pytest.approx(0.01562484, abs=1e-8)
    assert mdlm_chance(32, 64) == pytest.approx(0.03124938, abs=1e-8)
    assert mdlm_chance(63, 64) == pytest.approx(0.99936040, abs=1e-8)
    survival = math.prod(1 - mdlm_chance(step, 64) for step in range(64))
    assert survival == pytest.approx(1e-5, rel=1e-6)


def test_origin_reveals_the_rest_at_the_end() -> None:
    chances = [origin_chance(step, 16) for step in range(16)]
    assert chances[0] == pytest.approx(0.999 / 16)
    assert chances[-1] == 1.0
    assert chances == sorted(chances)


@pytest.mark.parametrize(
    ("masked", "steps", "counts"),
    [(10, 4, [3, 3, 2, 2]), (32, 12, [3] * 8 + [2] * 4), (3, 5, [1, 1, 1, 0, 0])],
)
def test_llada_counts(masked: int, steps: int, counts: list[int]) -> None:
    seen = []
    for step in range(steps):
        seen.append(llada_count(masked, steps - step))
        masked -= seen[-1]
    assert seen == counts


@pytest.mark.parametrize(
    ("masked", "steps", "counts"), [(8, 4, [1, 2, 2, 3]), (64, 16, [3] + [4] * 14 + [5])]
)
def test_dream_counts(masked: int, steps: int, counts: list[int]) -> None:
    seen = []
    for step in range(steps):
        seen.append(dream_count(masked, step, steps))
        masked -= seen[-1]
    assert seen == counts


@pytest.mark.parametrize(
    ("name", "counts"), [("low_confidence", [3, 3, 2, 2]), ("entropy", [2, 2, 2, 4])]
)
def test_the_surest_are_revealed(name: str, counts: list[int]) -> None:
    walk = Walk(job(Kernel(name, steps=4), length=10), MASK)
    left = list(range(2, 12))
    for count in counts:
        need = walk.next()
        assert need is not None
        assert need.positions.tolist() == left
        assert need.count == count
        answered(walk, need)
        left = left[:-count]
        assert np.flatnonzero(walk.tokens == MASK).tolist() == left
    assert walk.next() is None
    assert walk.result().nfe == 4


def test_equally_sure_positions_are_revealed_from_the_left() -> None:
    walk = Walk(job(Kernel("maskgit_plus", steps=4)), MASK)
    need = walk.next()
    assert need is not None
    walk.reveal(np.full(8, 1), np.zeros(8), np.zeros(8))
    assert np.flatnonzero(walk.tokens == MASK).tolist() == list(range(3, 10))


def test_steps_without_a_reveal_cost_nothing() -> None:
    """For as many steps as tokens about e^-1 of them are passed."""
    costs = []
    for seed in range(200):
        walk = Walk(job(Kernel("mdlm", steps=32), length=32, seed=seed), MASK)
        while (need := walk.next()) is not None:
            assert len(need.positions) > 0
            answered(walk, need)
        done = walk.result()
        assert done.step == 32
        assert done.tokens == PROMPT + (1,) * 32
        costs.append(done.nfe)
    # 200 means of 32 steps: 0.637 of them cost; the deviation of the mean is below 0.005
    assert np.mean(costs) / 32 == pytest.approx(1 - (1 - 1 / 32) ** 32, abs=0.02)


def test_more_steps_than_masks_cost_one_each() -> None:
    walk = Walk(job(Kernel("low_confidence", steps=20), length=5), MASK)
    while (need := walk.next()) is not None:
        answered(walk, need)
    assert walk.result().nfe == 5
    assert walk.result().step == 20


def noisy_seed(kernel: Kernel) -> tuple[int, list[Need]]:
    """A seed under which chance leaves something masked before the fill."""
    for seed in range(5000):
        walk, needs = Walk(job(kernel, length=64, seed=seed), MASK), []
        while (need := walk.next()) is not None:
            needs.append(need)
            answered(walk, need)
        if any(need.is_fill for need in needs):
            return seed, needs
    raise AssertionError("chance left nothing in 5000 runs of 64 tokens")


def test_noise_removal_fills_what_chance_left() -> None:
    """With one step a position stays masked with probability 1e-5, here 64 times 5000."""
    kernel = Kernel("mdlm", steps=1)
    seed, needs = noisy_seed(kernel)
    assert [need.is_fill for need in needs] == [False, True]
    kept = Walk(job(replace(kernel, noise_removal=False), length=64, seed=seed), MASK)
    need = kept.next()
    assert need is not None
    answered(kept, need)
    assert kept.next() is None
    assert MASK in kept.result().tokens
    assert kept.result().nfe == 1


def test_blocks_have_their_own_schedules() -> None:
    walk = Walk(job(Kernel("low_confidence", steps=4, block_length=4)), MASK)
    seen = []
    while (need := walk.next()) is not None:
        seen.append((need.positions.tolist(), need.count))
        answered(walk, need)
    assert seen == [([2, 3, 4, 5], 2), ([2, 3], 2), ([6, 7, 8, 9], 2), ([6, 7], 2)]


def test_draws_are_keyed_by_seed_step_and_position() -> None:
    def first(seed: int) -> tuple[list[int], list[float]]:
        walk = Walk(job(Kernel("random", steps=4), seed=seed), MASK)
        need = walk.next()
        assert need is not None
        return need.positions.tolist(), walk.uniforms().tolist()

    assert first(1) == first(1)
    assert len({tuple(first(seed)[1]) for seed in range(50)}) == 50
    walk = Walk(job(Kernel("low_confidence", steps=8)), MASK)
    need = walk.next()
    assert need is not None
    numbers = dict(zip(need.positions.tolist(), walk.uniforms().tolist(), strict=True))
    other = Walk(
        replace(job(Kernel("low_confidence", steps=8)), tokens=(4, 5, *[1] * 7, MASK)), MASK
    )
    assert other.next() is not None
    assert other.uniforms().tolist() == [numbers[9]]  # whoever else is masked


def test_random_positions_are_uniform() -> None:
    """Chi-square over 8 positions, 2000 seeds; 29.9 is passed by chance once in 10,000."""
    counts = np.zeros(10)
    for seed in range(2000):
        need = Walk(job(Kernel("random", steps=8), seed=seed), MASK).next()
        assert need is not None
        counts[need.positions] += 1
    expected = 2000 / 8
    assert ((counts[2:] - expected) ** 2 / expected).sum() < 29.9


def test_position_temperature_draws_by_confidence() -> None:
    """The first position of two is drawn with its softmax; 5 deviations of 4000 draws."""
    kernel = Kernel("low_confidence", steps=2, position_temperature=0.5)
    hits = 0
    for seed in range(4000):
        walk = Walk(job(kernel, length=2, seed=seed), MASK)
        assert walk.next() is not None
        walk.reveal(np.array([1, 1]), np.zeros(2), np.array([0.6, 0.1]))
        hits += walk.tokens[2] == 1
    expected = 1 / (1 + math.exp(-0.5 / 0.5))
    assert hits / 4000 == pytest.approx(
        expected, abs=5 * math.sqrt(expected * (1 - expected) / 4000)
    )


def test_an_idle_walk_cannot_be_answered() -> None:
    walk = Walk(job(Kernel("random", steps=8)), MASK)
    with pytest.raises(LookupError):
        walk.uniforms()
