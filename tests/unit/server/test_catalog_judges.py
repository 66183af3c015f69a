"""Which judge a request gets that names none, and which models carry what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reward_models.base import RewardModel
from reward_models.verifier import VerifierJudge
from search.errors import MissingRewardModel
from search.plugins import load
from server.catalog import Catalog, Served
from server.settings import ModelSettings, Settings
from tests.toy_engine import TOKENIZER, ToyEngine, ToyMultifurcation


def served(model_id: str, judge: str | None = None, tokenizer: str = TOKENIZER) -> Served:
    engine = ToyEngine()
    engine.info = replace(engine.info, tokenizer_hash=tokenizer)
    return Served(model_id, engine, ModelSettings(reward_model=judge), 0)


def rows(tokenizer: str = TOKENIZER) -> RewardModel:
    return ToyMultifurcation(len, tokenizer)


def catalog(judges: dict[str, RewardModel], **models: Any) -> Catalog:
    return Catalog(
        {name: served(name, *given) for name, given in models.items()},
        judges,
        load("bough.strategies"),
    )


@pytest.mark.parametrize(
    ("judges", "own", "found"),
    [
        (["plain"], "plain", "plain"),  # refused later, naming its kind
        (["plain", "rows"], "plain", "rows"),
        (["plain", "rows"], None, "rows"),
        (["plain", "rows", "foreign"], "plain", "rows"),
        (["rows", "more"], "more", "more"),
        (["foreign"], "foreign", "foreign"),
        ([], None, None),
    ],
)
def test_a_strategy_of_tokens_finds_the_judge_that_fits(
    judges: list[str], own: str | None, found: str | None
) -> None:
    made: dict[str, RewardModel] = {
        "plain": VerifierJudge("plain"),
        "rows": rows(),
        "more": rows(),
        "foreign": rows("another"),
    }
    one = catalog({name: made[name] for name in judges}, m=[own])
    assert one.usual_judge(one.models["m"], "saffron") == found
    assert one.usual_judge(one.models["m"], "best_of_n") == own
    assert one.usual_judge(one.models["m"], "single") == own


def test_of_several_that_fit_one_must_be_named() -> None:
    one = catalog({"a": rows(), "b": rows(), "c": VerifierJudge("c")}, m=["c"])
    with pytest.raises(MissingRewardModel, match="'a', 'b' fit") as caught:
        one.usual_judge(one.models["m"], "saffron")
    assert caught.value.param == "bough.reward_model"
    assert "saffron" in one.carried_by(one.models["m"])


def test_models_without_a_judge_that_fits_do_not_carry_it() -> None:
    one = catalog({"r": rows(), "v": VerifierJudge("v")}, near=["v"], far=["v", "another"])
    carried = {name: one.carried_by(model) for name, model in one.models.items()}
    assert "saffron" in carried["near"]
    assert "saffron" not in carried["far"]
    assert set(carried["near"]) - set(carried["far"]) == {"saffron"}
    assert one.carriers_of("saffron") == ["near"]
    assert one.carriers_of("beam") == ["near", "far"]


def test_a_bundled_models_judge_is_the_only_one_of_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {
        "sums": {"task": "sums"},
        "guarded": {"task": "guarded"},
        "stated": {"task": "guarded", "reward_model": "prm"},
        "two": {"task": "twice"},
        "free": {},
        "prm": {"kind": "process", "task": "sums"},
        "judge": {"kind": "outcome", "task": "guarded"},
        "mrm": {"kind": "multifurcation", "task": "guarded"},
        "first": {"kind": "outcome", "task": "twice"},
        "second": {"kind": "outcome", "task": "twice"},
        "taskless": {"kind": "outcome"},
    }
    for name, card in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "bough.json").write_text(json.dumps({"id": name, **card}))
    monkeypatch.setattr(
        "server.settings.bundled", lambda: {name: tmp_path / name for name in cards}
    )
    found = {name: model.reward_model for name, model in Settings().models.items()}
    assert found == {
        "sums": "prm",
        "guarded": "judge",
        "stated": "prm",
        "two": None,
        "free": None,
    }
