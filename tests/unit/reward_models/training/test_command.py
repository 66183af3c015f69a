"""The command: answers to texts with rewards to a model that is served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from reward_models.base import Candidate
from reward_models.multifurcation import open_judge
from reward_models.training.__main__ import main
from reward_models.training.token_rewards import read_texts
from tests.unit.reward_models.training.texts import write_base

ASK = {"role": "user", "content": "how many coins?"}
ANSWERS = ("12+30=42.", "1+1=3.", "the cat", "2+2=4 and 2+2=5.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("command"))


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    lines = [
        {"conv_id": f"c{n}", "split": split, "messages": [ASK], "content": text}
        for n, text in enumerate(ANSWERS)
        for split in (["train", "validation"][n % 2],)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def annotate(answers: Path, texts: Path, base: Path, *more: str) -> int:
    return main(["annotate", f"{answers}", f"{texts}", "--base", f"{base}", *more])


def test_annotated_trained_and_served(base: Path, answers: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "tiny-mrm"
    assert annotate(answers, texts, base, "--judge", "verifier") == 0
    whole = texts.read_bytes()
    found = read_texts(texts)
    assert [text.conv_id for text in found] == ["c0", "c1", "c2", "c3"]
    assert [text.rewards[-1] for text in found] == [1.0, 0.0, 0.5, 0.5]

    # Killed within the third line: what is whole is kept, the rest is asked again.
    cut = whole.index(b"c2") + 30
    texts.write_bytes(whole[:cut])
    assert annotate(answers, texts, base, "--judge", "verifier") == 0
    assert texts.read_bytes() == whole

    train = ["train", f"{texts}", f"{out}", "--base", f"{base}", "--work", f"{tmp_path / 'work'}"]
    assert main([*train, "--rank", "2", "--epochs", "2", "--prefill", "shown"]) == 0
    about = json.loads((out / "bough.json").read_text())
    assert about["prefill"] == "shown"
    assert (out / about["base"]).resolve() == base.resolve()
    card = (out / "CARD.md").read_text()
    assert "rank 2" in card
    assert "| within 1 | " in card
    assert -100 < asyncio.run(value_of("1+1=3", out)) < 100


async def value_of(text: str, model: Path) -> float:
    """An answer's value by the served model."""
    judge = open_judge("tiny-mrm", str(model), {"device": "cpu", "kv_tokens": 4096})
    try:
        (score,) = await judge.score([Candidate((ASK,), text, (), ())])
    finally:
        await judge.aclose()
    return score.value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge", "none"], "no judge of kind 'none'"),
        (["--judge", "verifier", "--options", "{"], "must be a JSON object"),
        (["--judge", "verifier", "--options", "[1]"], "must be a JSON object, not [1]"),
    ],
)
def test_a_teacher_that_is_none_is_one_line(
    arguments: list[str],
    said: str,
    base: Path,
    answers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert annotate(answers, tmp_path / "texts.jsonl", base, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"conv_id": "c0", "messages": [ASK], "content": "7."}, "conv_id 'c0' is there twice"),
        ({"conv_id": "c9", "messages": [], "content": "7."}, "it answers no message"),
    ],
)
def test_an_answer_that_is_none_is_named_before_the_judge_is_asked(
    line: object,
    said: str,
    base: Path,
    answers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answers.open("a") as file:
        file.write(json.dumps(line))
    texts = tmp_path / "texts.jsonl"
    assert annotate(answers, texts, base, "--judge", "verifier") == 2
    error = capsys.readouterr().err
    assert f"{answers}:5: " in error
    assert said in error
    assert texts.read_bytes() == b""


def test_it_says_how_many_answers_leave_nothing_to_learn(
    base: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    assert annotate(answers, texts, base, "--judge", "verifier", "--max-tokens", "2") == 0
    assert "4 of 4 answers were passed over" in capsys.readouterr().out
    assert texts.read_bytes() == b""


def test_files_that_are_none_are_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert annotate(nowhere, tmp_path / "texts.jsonl", base, "--judge", "verifier") == 2
    train = ["train", f"{nowhere}", f"{tmp_path / 'o'}", "--base", f"{base}"]
    assert main([*train, "--work", f"{tmp_path / 'w'}"]) == 2
    assert capsys.readouterr().err.count("cannot be read") == 2
