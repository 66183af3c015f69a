"""Particle filters against an enumerated posterior.

The target is gamma(x) = p(x) * product of the judge's values of the prefixes of x. With
`incremental` weights the sum over particles of weight * 1[particle is x], over the width, has mean
gamma(x) for every answer x, whatever the width, the scheme, the temperature or the look-ahead.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import pytest
from scipy.stats import binomtest

from search.base import Outcome
from search.branch import Branch
from search.filtering import Cloud
from tests.search_harness import result_of
from tests.toy_engine import END, ToyEngine, ToyJudge, answers_of

RUNS, ALPHA = 160, 1e-5
FAMILY = 7 * 10  # variants of this test, each with at most so many answers


def table(text: str) -> Mapping[str, float]:
    """Two or three lines; what comes depends on what was."""
    if len(text) % 2:
        return {"\n": 1.0}
    if len(text) == 2 * 3:
        return {END: 1.0}
    if text == "a\nb\n":
        return {END: 1.0}
    return {"a": 0.3, "b": 0.7} if text.endswith("a\n") else {"a": 0.6, "b": 0.4}


def value(text: str) -> float:
    """The potential of a prefix that ends here; early ones mislead."""
    if not text:
        return 1.0
    return {"a\n": 0.9, "b\n": 0.3}.get(text, 0.2 + 0.15 * text.count("b"))


def gamma() -> dict[str, float]:
    """Every answer's unnormalised posterior."""
    found = {}
    for answer, probability in answers_of(table).items():
        ends = range(2, len(answer) + 1, 2)
        found[answer] = probability * math.prod(round(value(answer[:end]), 5) for end in ends)
    return found


class Watched:
    """Remembers the last sweep's particles and weights of every run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last: list[tuple[str, float]] = []
        ended = Cloud.outcome

        async def outcome(cloud: Cloud, archive: tuple[Branch, ...] = ()) -> Outcome:
            self.last = [(one.text, cloud._final_log(one)) for one in cloud.population]
            return await ended(cloud, archive)

        monkeypatch.setattr(Cloud, "outcome", outcome)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("particle_filter", {"finished_policy": "absorb"}),
        ("particle_filter", {"mode": "reference"}),
        ("particle_filter", {"resampling": "residual", "resample_trigger": 0.7}),
        ("particle_filter", {"resampling": "stratified", "softmax_temperature": 3.0}),
        ("entropic_particle_filter", {"ess_threshold": 1.0, "early_phase": 1.0, "max_depth": 4}),
        (
            "entropic_particle_filter",
            {"lookahead": "product", "reuse_successor": False, "ess_threshold": 0.9},
        ),
        (
            "entropic_particle_filter",
            {"lookahead": "successor", "reuse_successor": False, "finished_policy": "compete"},
        ),
    ],
    ids=str,
)
async def test_incremental_weights_are_unbiased(
    name: str, params: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mean lies within z standard errors of gamma.

    z is the two-sided normal quantile of ALPHA / FAMILY, so that with 160 runs, where means are
    close to normal, a sound filter fails with probability 1e-5 or so (at most 1e-3 if the tails
    of the means are a hundred times heavier than the normal's).
    """
    exact, width = gamma(), 4
    watched, engine = Watched(monkeypatch), ToyEngine(table)
    sums: dict[str, list[float]] = {one: [] for one in exact}
    for seed in range(RUNS):
        more = {"width": width, "weights": "incremental", **params}
        await result_of(engine, name, more, judge=ToyJudge(value), seed=seed)
        totals: defaultdict[str, float] = defaultdict(float)
        for text, log in watched.last:
            totals[text] += math.exp(log) / width
        assert totals.keys() <= exact.keys()
        for answer, found in sums.items():
            found.append(totals[answer])
    quantile = -NormalDist().inv_cdf(ALPHA / FAMILY / 2)
    everything = [sum(column) for column in zip(*sums.values(), strict=True)]
    for target, found in [
        *((exact[one], sums[one]) for one in exact),
        (sum(exact.values()), everything),
    ]:
        mean = math.fsum(found) / RUNS
        spread = math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (RUNS - 1) / RUNS)
        assert abs(mean - target) < quantile * spread
    # sharp enough that weights which count a step twice would fail
    assert quantile * spread < 0.35 * sum(exact.values())


async def test_gibbs_sweeps_come_to_the_posterior() -> None:
    """The likeliest answer is drawn as often as the posterior says; after one sweep too rarely.

    A sound sampler fails with probability 1e-4, and by what six sweeps leave of the first bias.
    """
    exact, runs = gamma(), 150
    likeliest = max(exact, key=exact.__getitem__)
    share = exact[likeliest] / sum(exact.values())
    engine, judge = ToyEngine(table), ToyJudge(value)
    pvalues = []
    for iterations in (6, 1):
        params: dict[str, Any] = {"iterations": iterations, "width": 3, "mode": "reference"}
        params |= {"weights": "incremental", "choose": "sample"}
        drawn = [
            (await result_of(engine, "particle_gibbs", params, judge=judge, seed=seed)).answers[0]
            for seed in range(runs)
        ]
        hits = sum(one.content == likeliest for one in drawn)
        pvalues.append(binomtest(hits, runs, share).pvalue)
    assert pvalues[0] > 1e-4 > pvalues[1]
