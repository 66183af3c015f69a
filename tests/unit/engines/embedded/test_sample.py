"""Drawing: uniform numbers, truncation, penalties, bias, bans and the reported log-probabilities.

The statistical tests have fixed seeds; each would fail a right sampler once in 10,000 seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats

from engines.base import Sampling, TokenIds
from engines.embedded.jobs import GenerateJob
from engines.embedded.sample import Draw, Sampler, mix, uniforms
from engines.embedded.sequence import Branch
from engines.textstop import TextTracker

FALSE_ALARM = 1e-4
V = 12
CPU = torch.device("cpu")


def branch(
    how: Sampling,
    *,
    seed: int = 0,
    prompt: TokenIds = (1, 2),
    answer: TokenIds = (),
    stop_ids: frozenset[int] = frozenset(),
) -> Branch:
    made = Branch(
        "",
        prompt,
        how=how,
        seed=seed,
        response_start=len(prompt),
        limit=10_000,
        stop_ids=stop_ids,
        tracker=TextTracker([b"x"] * V),
        job=cast("GenerateJob", None),
        index=0,
        order=(0, 0),
    )
    made.tokens.extend(answer)
    return made


def draw(logits: Sequence[float] | torch.Tensor, branches: list[Branch]) -> Draw:
    row = torch.as_tensor(logits, dtype=torch.float32)
    rows = row if row.dim() == 2 else row.repeat(len(branches), 1)
    return Sampler(branches, CPU).draw(rows.clone())


def drawn(logits: Sequence[float], how: Sampling, count: int = 400, **more: Any) -> set[int]:
    """All tokens that many seeds draw."""
    return set(draw(logits, [branch(how, seed=mix(9, i), **more) for i in range(count)]).ids)


RAMP = [float(i) / 3 for i in range(V)]


def test_uniforms_are_uniform() -> None:
    """Over positions of one seed, over seeds at one position, and over child seeds."""
    count = 20_000
    ones, numbers = np.ones(count, np.uint64), np.arange(count, dtype=np.uint64)
    children = np.array([mix(7, i) for i in range(count)], dtype=np.uint64)
    for seeds, positions in (
        (ones * np.uint64(42), numbers),
        (numbers, ones),
        (children, ones * np.uint64(3)),
    ):
        u = uniforms(seeds, positions)
        assert u.min() >= 0
        assert u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM
        lagged = abs(np.corrcoef(u[:-1], u[1:])[0, 1]) * np.sqrt(count)
        assert lagged < stats.norm.isf(FALSE_ALARM / 2)


def test_mix_is_the_vectorised_function() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1]
    for position in (0, 1, 10**6):
        u = uniforms(
            np.array(seeds, dtype=np.uint64), np.full(len(seeds), position, dtype=np.uint64)
        )
        assert u.tolist() == [(mix(seed, position) >> 11) * 2.0**-53 for seed in seeds]


@pytest.mark.parametrize(
    ("how", "temperature"),
    [
        (Sampling(), 1.0),
        (Sampling(temperature=0.5), 0.5),
        (Sampling(temperature=2.0), 2.0),
        (Sampling(top_p=0.999999), 1.0),
    ],
)
def test_draws_follow_the_softmax(how: Sampling, temperature: float) -> None:
    count = 20_000
    ids = draw(RAMP, [branch(how, seed=mix(3, i)) for i in range(count)]).ids
    expected = torch.tensor(RAMP).div(temperature).softmax(0).double()
    observed = np.bincount(ids, minlength=V)
    fair = (expected / expected.sum()).numpy() * count
    assert stats.chisquare(observed, fair).pvalue > FALSE_ALARM


def test_truncated_draws_follow_the_renormalised_softmax() -> None:
    count = 20_000
    how = Sampling(top_k=4)
    ids = draw(RAMP, [branch(how, seed=mix(4, i)) for i in range(count)]).ids
    expected = torch.tensor(RAMP[-4:]).double().softmax(0).numpy() * count
    assert min(ids) == V - 4
    assert stats.chisquare(np.bincount(ids)[-4:], expected).pvalue > FALSE_ALARM


def test_temperature_zero_takes_the_likeliest() -> None:
    greedy = Sampling(temperature=0.0)
    assert drawn([0.0, 5.0, 4.99, *[0.0] * 9], greedy) == {1}
    assert drawn([0.0, 5.0, 4.99, *[0.0] * 9], Sampling(temperature=0.0, top_k=3, top_p=0.9)) == {1}
    assert drawn([0.0, 5.0, 4.99, *[0.0] * 9], Sampling(temperature=1e-3)) == {1}


def test_every_row_keeps_its_own_options() -> None:
    hows = [
        Sampling(temperature=0.0),
        Sampling(top_k=1),
        Sampling(min_p=1.0),
        Sampling(top_p=1e-9),
        Sampling(ban_ids=frozenset(range(1, V))),
        Sampling(logit_bias={5: 100.0}),
        Sampling(),
    ]
    for seed in range(40):
        ids = draw(RAMP, [branch(how, seed=seed) for how in hows]).ids
        (alone,) = draw(RAMP, [branch(Sampling(), seed=seed)]).ids
        assert ids == [V - 1, V - 1, V - 1, V - 1, 0, 5, alone]


def test_top_p_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist() + [-100.0] * 8
    assert drawn(logits, Sampling(top_p=0.81)) == {0, 1, 2}
    assert drawn(logits, Sampling(top_p=0.79)) == {0, 1}
    assert drawn(logits, Sampling(top_p=0.45)) == {0}
    assert drawn(logits, Sampling(top_p=0.79, temperature=100.0)) >= {0, 1, 2, 3}


def test_top_k_and_min_p_and_top_p_combine() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1]).tolist() + [-100.0] * 8
    assert drawn(logits, Sampling(top_k=2)) == {0, 1}
    assert drawn(logits, Sampling(top_k=100)) == {0, 1, 2, 3}
    assert drawn(logits, Sampling(min_p=0.45)) == {0, 1, 2}
    assert drawn(logits, Sampling(min_p=0.8)) == {0}
    # Nucleus of what top-k left: 0.4 / 0.9 and 0.3 / 0.9 hold 0.75.
    assert drawn(logits, Sampling(top_k=3, top_p=0.75)) == {0, 1}


def test_penalties_count_the_answer_and_repetition_the_prompt_too() -> None:
    flat = [0.0] * V
    logits = [1.0, 1.0, 1.0, 1.0, -1.0, *[-50.0] * 7]
    assert drawn(logits, Sampling(presence_penalty=50.0), answer=(0,)) == {1, 2, 3, 4}
    assert 1 in drawn(logits, Sampling(presence_penalty=50.0), answer=(0,), prompt=(1, 2))
    once, twice = (
        draw(
            [2.0, 0.0, *[-50.0] * 10],
            [branch(Sampling(temperature=0.0, frequency_penalty=1.5), answer=(0,) * times)],
        ).ids
        for times in (1, 2)
    )
    assert (once, twice) == ([0], [1])
    greedy = Sampling(temperature=0.0, repetition_penalty=3.0)
    assert draw([2.0, 1.0, *[-9.0] * 10], [branch(greedy, prompt=(0,))]).ids == [1]
    assert draw([-1.0, -2.0, *[-9.0] * 10], [branch(greedy, prompt=(0,))]).ids == [1]
    assert draw(flat, [branch(Sampling(presence_penalty=1.0))]).ids  # nothing answered yet


def test_bias_and_bans() -> None:
    assert drawn([0.0] * V, Sampling(logit_bias={3: 100.0, 4: 100.0})) == {3, 4}
    assert 7 not in drawn([0.0] * 7 + [5.0] + [0.0] * 4, Sampling(ban_ids=frozenset({7})))
    banned = Sampling(temperature=0.0, ban_ids=frozenset({V - 1}))
    assert drawn(RAMP, banned) == {V - 2}
    both = Sampling(logit_bias={7: 100.0}, ban_ids=frozenset({7}))
    assert 7 not in drawn([0.0] * V, both)


def test_min_tokens_hold_the_end_back() -> None:
    how = Sampling(min_tokens=2)
    stop = frozenset({V - 1})
    sharp = [0.0] * (V - 1) + [50.0]
    for answered, allowed in ((0, False), (1, False), (2, True)):
        ids = drawn(sharp, how, answer=(1,) * answered, stop_ids=stop)
        assert (ids == {V - 1}) == allowed
        assert ((V - 1) in ids) == allowed
    # A neighbour without the option may end at once, in one sampler over several steps.
    pair = [branch(how, stop_ids=stop), branch(Sampling(), stop_ids=stop)]
    sampler = Sampler(pair, CPU)
    for step in range(3):
        ids = sampler.draw(torch.tensor([sharp, sharp])).ids
        assert ids[1] == V - 1
        assert (ids[0] == V - 1) == (step == 2)
        for one in pair:
            one.tokens.append(1)


class Falling:
    """Hot, then greedy."""

    def temperature(self, position: int) -> float:
        return 50.0 if position < 1 else 0.0

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 50.0), (1, 0.0)][:max_pieces]


def test_a_schedule_replaces_the_temperature_by_position() -> None:
    how = Sampling(temperature=0.0, schedule=Falling())
    assert len(drawn(RAMP, how)) == V
    assert drawn(RAMP, how, answer=(1,)) == {V - 1}


def test_reported_logps_are_those_of_the_plain_softmax() -> None:
    plain = torch.tensor(RAMP).log_softmax(0)
    hows = [
        Sampling(temperature=0.3),
        Sampling(top_k=2),
        Sampling(logit_bias={3: 9.0}, presence_penalty=2.0),
        Sampling(logprobs=3),
        Sampling(logprobs=99),
    ]
    got = draw(RAMP, [branch(how, answer=(3,)) for how in hows])
    assert got.logps == pytest.approx(plain[got.ids].tolist())
    assert got.tops is not None
    assert [len(tops) for tops in got.tops] == [0, 0, 0, 3, V]
    assert [token for token, _ in got.tops[3]] == [V - 1, V - 2, V - 3]
    assert got.tops[3][0][1] == pytest.approx(float(plain.max()))
    assert draw(RAMP, [branch(Sampling())]).tops is None


def test_a_draw_depends_on_seed_and_position_only() -> None:
    hows = [Sampling(), Sampling(top_p=0.9), Sampling(temperature=0.7)]
    crowd = [branch(hows[i % 3], seed=i, answer=(1,) * (i % 4)) for i in range(60)]
    together = draw(RAMP, crowd).ids
    alone = [draw(RAMP, [one]).ids[0] for one in crowd]
    assert together == alone


def test_tokens_of_no_probability_are_never_drawn() -> None:
    logits = [-torch.inf, 0.0, -torch.inf, 0.0, *[-torch.inf] * 8]
    assert drawn(logits, Sampling()) == {1, 3}
    assert drawn(logits, Sampling(top_p=0.99)) == {1, 3}
