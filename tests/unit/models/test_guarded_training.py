"""Training of the guarding saplings: what weighs, what is judged, and that judges come back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.registry import bundled
from models.tasks import guarded as task
from models.training import guarded
from models.training.batches import PROMPT_WEIGHT
from models.training.generator import train_stage
from models.training.guarded_judge import Judge
from models.training.guarded_make import write_guarded_cards
from models.training.measure import load_chat
from models.training.network import Llama, Shape

CHAT = load_chat(bundled()["sapling-guarded"])


def test_conversations_weigh_answers_and_not_forced_choices() -> None:
    batch = next(guarded.generator_batches(CHAT, 1, 1024))
    assert batch.ids.shape == batch.weights.shape == (8, guarded.LENGTH)
    assert (batch.weights[batch.ids == CHAT.pad_id] == 0).all()
    assert (batch.weights[:, 0] == 0).all()
    inner = batch.weights[:, 1:][batch.ids[:, 1:] != CHAT.pad_id]
    assert set(inner.flatten().tolist()) <= set(torch.tensor([0.0, PROMPT_WEIGHT, 1.0]).tolist())
    assert 0 < (inner == 0).sum() < inner.numel() / 10


def test_pieces_are_the_tokens_of_the_whole_answer() -> None:
    for index in range(200):
        problem = task.drawn("prefilled", "train", 5, index)
        whole = CHAT.encode(f"{problem.prefill} a thing that I keep and for now I will not tell.")
        parts = CHAT.encode(problem.prefill)
        for piece in (" a thing", " that I keep", " and for now", " I will not", " tell."):
            parts += CHAT.encode(piece)
        assert parts == whole


def test_each_judged_answer_has_a_verdict_at_its_end() -> None:
    batch = next(guarded.judge_batches(CHAT, guarded.JUDGE))
    full = batch.verdicts == 1.0
    assert full.any(dim=1).all()
    assert (batch.ids[full] == CHAT.end_id).all()
    assert (batch.verdicts[batch.ids == CHAT.pad_id] == 0).all()
    labels = batch.targets[full]
    assert 0.1 < labels.mean() < 0.9
    assert len(batch.parts) == 4


def test_a_judge_reads_a_beginning_as_a_turn_of_its_own() -> None:
    problem = task.drawn("prefilled", "test", 5, 0)
    mine = guarded.prompt_of(CHAT, problem)
    judged = guarded.prompt_of(CHAT, problem, is_judged=True)
    assert judged[: len(mine)] == mine
    assert judged[len(mine)] == CHAT.end_id


def test_a_judge_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape = Shape(640, hidden_size=16, intermediate_size=24, num_attention_heads=2)
    judge = Judge(Llama(shape)).eval()
    judge.score.weight.data.normal_()
    judge.save(tmp_path, CHAT)
    rows = [[1, 5, 9, 2], [1, 7, 2]]
    loaded = Judge.load(tmp_path).score_rows(rows)
    assert loaded == pytest.approx(judge.score_rows(rows), abs=0.05)
    assert loaded[1] == pytest.approx(Judge.load(tmp_path).score_rows(rows[1:])[0], abs=1e-5)


def test_a_stage_trains_a_judge_with_its_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    judge = Judge(Llama(Shape(640, hidden_size=16, intermediate_size=24, num_attention_heads=2)))
    run = replace(guarded.JUDGE, stage=replace(guarded.JUDGE.stage, steps=2, tokens_per_batch=512))
    saved = []
    train_stage(
        run.stage,
        judge.network,
        CHAT,
        tmp_path,
        is_compiled=False,
        batches=guarded.judge_batches(CHAT, run),
        loss=judge,
        save=lambda: saved.append(judge.score.weight.abs().sum().item()),
    )
    assert len(saved) == 1
    assert saved[0] > 0


def test_cards_hold_the_figures_of_the_models_beside_them(tmp_path: Path) -> None:
    names = ("sapling_guarded", "sapling_teacher", "sapling_judge")
    for name in names:
        shutil.copytree(bundled()[name.replace("_", "-")], tmp_path / name)
        (tmp_path / name / "CARD.md").unlink()
    write_guarded_cards(tmp_path, "cpu", "a test", dict.fromkeys(names, 1.5), n=12, seed=3)
    for name in names:
        card = (tmp_path / name / "CARD.md").read_text()
        assert "## Quality" in card
        assert "a test" in card
    assert "| word told, begun | " in (tmp_path / "sapling_guarded" / "CARD.md").read_text()
    assert "| AUROC | " in (tmp_path / "sapling_judge" / "CARD.md").read_text()
