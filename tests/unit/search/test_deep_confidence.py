"""Deep confidence gives doubtful answers up early, and lets sure ones vote."""

from collections.abc import Mapping

import pytest

from engines.base import Capability
from engines.errors import UnsupportedByEngine
from search.base import Outcome
from search.budget import Limits
from search.run import Result, Run
from search.search import Search
from tests.search_harness import TryOut, request, result_of
from tests.toy_engine import END, ToyEngine

LENGTH = 48
MORE, LESS = (0.5, 0.3, 0.1, 0.1), (0.3, 0.3, 0.2, 0.2)
HALF = {"width": 16, "keep_ratio": 0.5, "window": 8}


def path(text: str) -> Mapping[str, float]:
    """Two ways: a sure one that says 4, and a more frequent one, full of doubt, that says 5."""
    if not text:
        return {"s": 0.4, "d": 0.6}
    is_sure = text[0] == "s"
    if len(text) < LENGTH:
        if is_sure:
            return {"x": 0.9, "y": 0.1} if text[-1] == "x" else {"x": 0.98, "y": 0.02}
        return dict(zip("vxyz", LESS if text[-1] in "vy" else MORE, strict=True))
    if text[-1].isdigit():
        return {END: 1.0}
    return {" ": 1.0} if text[-1] != " " else {"4" if is_sure else "5": 1.0}


async def asked(params: Mapping[str, object], seed: int) -> tuple[Result, Run]:
    run = Run(request("deep_confidence", params, seed=seed, max_tokens=80), engine=ToyEngine(path))
    return await run.result(), run


async def test_sure_answers_outvote_a_majority_in_doubt() -> None:
    right = outvoted = 0
    for seed in range(20):
        result, _ = await asked(HALF, seed)
        full = await result_of(
            ToyEngine(path), "self_consistency", {"width": 16}, seed=seed, max_tokens=80
        )
        right += result.answers[0].content.endswith("4")
        outvoted += full.answers[0].content.endswith("5")
    # of eight warm-up answers at least one is sure except with 0.6 ** 8 = 0.017 a run
    assert right >= 17
    assert outvoted >= 5


async def test_doubtful_answers_stop_within_a_window() -> None:
    stopped = 0
    for seed in range(6):
        result, run = await asked(HALF | {"consensus": 1.0}, seed)
        children = [one for one in run.tree.branches if one.depth == 1]
        assert len(children) <= 16
        leaves = {one.id for one in run.tree.branches} - {
            one.parent.id for one in run.tree.branches if one.parent
        }
        cut = [one for one in run.tree.branches if one.id in leaves and one.finish is None]
        shown = {one.branch for one in result.candidates}
        assert not shown & {one.id for one in cut}
        assert all(one.num_tokens % 8 == 0 for one in cut)
        stopped += sum(one.num_tokens < LENGTH for one in cut)
    assert stopped


async def test_a_whole_warm_up_is_the_offline_form() -> None:
    result, run = await asked({"width": 6, "warmup": 6}, 1)
    assert result.spent.candidates == 6
    assert {one.depth for one in run.tree.branches} == {0, 1}
    assert len(result.candidates) == 6


async def test_those_below_the_bar_come_last_without_a_vote() -> None:
    result, _ = await asked({"width": 8, "warmup": 8, "keep_ratio": 0.25, "window": 8}, 3)
    scores = [one.score for one in result.candidates]
    assert scores.count(0.0) == 6
    assert scores == sorted(scores, key=lambda one: -(one or 0.0))


@pytest.mark.parametrize("measure", ["lowest", "bottom", "tail", "mean"])
async def test_every_measure_trusts_the_sure(measure: str) -> None:
    result, _ = await asked({**HALF, "warmup": 16, "measure": measure}, 0)
    assert result.answers[0].content.endswith("4")


async def test_agreement_ends_it() -> None:
    engine = ToyEngine(lambda text: {"4": 1.0} if not text else {END: 1.0})
    result = await result_of(engine, "deep_confidence")
    assert result.spent.candidates == 8


async def test_log_probabilities_are_needed() -> None:
    engine = ToyEngine(path, without=[Capability.LOGPROBS])
    with pytest.raises(UnsupportedByEngine, match="logprobs"):
        await result_of(engine, "deep_confidence")


async def test_given_answers_without_alternatives_are_ordinary(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        mine = await search.expand(search.root, 3)
        params = {"width": 6, "warmup": 4}
        outcome = await search.delegate("deep_confidence", params, Limits(), given=mine)
        assert {one.branch for one in outcome.candidates} >= set(mine)
        assert len([one for one in search.tree.branches if one.depth == 1]) <= 6
        return outcome

    await try_out(body, ToyEngine(path), max_tokens=80)
