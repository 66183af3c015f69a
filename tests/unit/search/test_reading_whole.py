"""The aggregate `model`: the judge is shown the answer so far as a single step."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import Capability
from reward_models.base import Candidate, RewardKind
from reward_models.presets import presets
from reward_models.verifier import VerifierJudge
from search.base import Outcome
from search.branch import Branch
from search.budget import Limits
from search.errors import InvalidParameter
from search.filtering import Cloud
from search.plugins import load
from search.registry import make_strategy, strategy_class
from search.run import Run
from search.search import Search
from search.select import Aggregate
from tests.search_harness import TryOut, request, result_of
from tests.toy_engine import END, MESSAGES, ToyEngine, ToyJudge, one_of

ANSWERS = one_of({"a\nb\nc": 0.5, "b\nb\na": 0.5})
JUDGED = [
    name
    for name in load("bough.strategies")
    if "aggregate" in strategy_class(name).Params.model_fields
    and make_strategy(name, {"width": 3}).needs_judge
    and Capability.DENOISE not in strategy_class(name).requires
]


def lines(text: str) -> Mapping[str, float]:
    """Three lines of one letter."""
    if len(text) % 2:
        return {"\n": 1.0}
    return {"a": 0.5, "b": 0.5} if len(text) < 6 else {END: 1.0}


def value(text: str) -> float:
    """Of a prefix; it falls, and rises again."""
    return {"a": 0.9, "b": 0.3}[text[0]] - 0.05 * text.count("b") + 0.02 * text.count("\n")


@pytest.mark.parametrize("name", JUDGED)
async def test_every_judging_strategy_shows_one_step(name: str) -> None:
    judge = ToyJudge(value)
    params = {"width": 3, "aggregate": "model"}
    run = Run(request(name, params), engine=ToyEngine(lines), judge=judge)
    result = await run.result()
    assert judge.seen
    assert all(one.steps == (one.text,) for one in judge.seen)
    assert any("\n" in one.text[:-1] for one in judge.seen)
    scored = [one for one in run.tree.snapshot()["nodes"] if one["score"] is not None]
    assert scored
    best = max(result.candidates, key=lambda one: value(one.content))
    assert round(value(best.content), 5) in {one["score"] for one in scored}


async def test_the_value_is_that_of_the_whole_answer() -> None:
    values = {"a\n": 0.1, "a\nb\n": 0.1, "a\nb\nc": 0.9, "b\n": 0.9, "b\nb\n": 0.9, "b\nb\na": 0.2}
    for how, content, score in (("model", "a\nb\nc", 0.9), ("min", "b\nb\na", 0.2)):
        params = {"width": 8, "aggregate": how}
        judge = ToyJudge(values.__getitem__)
        result = await result_of(ToyEngine(ANSWERS), "best_of_n", params, judge=judge)
        assert (result.answers[0].content, result.score) == (content, score)
    judge = ToyJudge(values.__getitem__)
    judge.info = replace(judge.info, aggregate="model")
    await result_of(ToyEngine(ANSWERS), "best_of_n", {"width": 8}, judge=judge)
    assert {one.steps for one in judge.seen} == {("a\nb\nc",), ("b\nb\na",)}, "its authors' way"
    judge.seen.clear()
    params = {"width": 8, "aggregate": "min"}
    await result_of(ToyEngine(ANSWERS), "best_of_n", params, judge=judge)
    assert {len(one.steps) for one in judge.seen} == {3}, "what the request says comes first"


@pytest.mark.parametrize("judge", ["process", "outcome"])
async def test_increments_are_ratios_of_whole_values(
    judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a draw, a particle's weight is the value of its whole prefix, counted once."""
    weights: list[tuple[str, float]] = []
    ended = Cloud.outcome

    async def outcome(cloud: Cloud, archive: tuple[Branch, ...] = ()) -> Outcome:
        weights.extend((one.text, cloud._final_log(one)) for one in cloud.population)
        return await ended(cloud, archive)

    monkeypatch.setattr(Cloud, "outcome", outcome)
    params = {"width": 6, "weights": "incremental", "resample_trigger": 0.0, "aggregate": "model"}
    asked = ToyJudge(value, RewardKind(judge))
    await result_of(ToyEngine(lines), "particle_filter", params, judge=asked)
    assert len(weights) == 6
    for text, log in weights:
        assert math.exp(log) == pytest.approx(value(text), abs=1e-4)


def test_who_cannot_read_so_refuses_before_any_work() -> None:
    engine = ToyEngine(lines)
    for name in ("ets", "best_of_n", "auto"):
        asked = request(name, {"aggregate": "model"})
        with pytest.raises(InvalidParameter, match="cannot read an answer as one step") as refused:
            Run(asked, engine=engine, judge=VerifierJudge("sums"))
        assert refused.value.param == "bough.params.aggregate"
    assert not engine.calls
    infos = {name: preset.info(name, "", 0) for name, preset in presets().items()}
    assert {name for name, info in infos.items() if not info.reads_whole} == {"skywork-o1-prm"}


@pytest.mark.parametrize(("own", "refused"), [("model", "prod"), ("prod", "model")])
async def test_inner_strategies_read_as_the_run_does(
    own: Aggregate, refused: Aggregate, try_out: TryOut
) -> None:
    judge = ToyJudge(value)
    judge.info = replace(judge.info, aggregate=own)

    async def body(search: Search) -> Outcome:
        with pytest.raises(InvalidParameter, match="the aggregate 'model'") as error:
            await search.delegate("ets", {"aggregate": refused}, Limits())
        assert error.value.param == "bough.params.aggregate"
        return await search.delegate("ets", {"width": 3}, Limits())

    await try_out(body, ToyEngine(lines), judge)
    long = [one for one in judge.seen if one.text.count("\n") > 1]
    assert long
    assert all((one.steps == (one.text,)) is (own == "model") for one in long)


async def test_auto_hands_it_on() -> None:
    judge = ToyJudge(lambda text: 0.5)
    params = {"width": 6, "look": 2, "hard_below": 1.0, "threshold": 0.99, "aggregate": "model"}
    params["tree"] = "ets"
    table = one_of({f"1+{n}\n2+{n}\nThe answer is {n}\n": 0.2 for n in range(5)})
    result = await result_of(ToyEngine(table), "auto", params, judge=judge)
    assert result.resolved.startswith("auto: ets")
    assert all(one.steps == (one.text,) for one in judge.seen)


async def test_a_published_judge_reads_one_tag(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the embedded runtime needs torch")
    from reward_models.layouts import TaggedSteps
    from reward_models.process import open_judge
    from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

    name = "qwen-math-prm"
    directory = write_checkpoint(name, tmp_path)
    judge = open_judge(name, str(directory), {**CHECKPOINTS[name].options, "kv_tokens": 2048})
    layout = judge._readings.layout
    assert isinstance(layout, TaggedSteps)
    steps = ("12+30=42\n\n", "one cat\n\n", "The answer is 42.")
    text = "".join(steps)
    for shown, tags in ((steps, 3), ((text,), 1)):
        laid = layout.lay_out(MESSAGES, shown, None)
        assert laid.tokens.count(layout.tag_id) == len(laid.ends) == tags
        assert laid.tokens[-1] == layout.tag_id
    alone = (await judge.score([Candidate(MESSAGES, text, (), (text,))]))[0].value
    params = {"width": 2, "aggregate": "model"}
    table = one_of({text: 1.0})
    result = await result_of(ToyEngine(table), "best_of_n", params, judge=judge, max_tokens=80)
    assert result.score == pytest.approx(alone, abs=1e-5)
    tagged = await result_of(
        ToyEngine(table), "best_of_n", {**params, "aggregate": "last"}, judge=judge, max_tokens=80
    )
    assert tagged.score != pytest.approx(alone, abs=1e-5)  # tags in between are read too
    assert judge.stats().pages_claimed == 0
    await judge.aclose()
