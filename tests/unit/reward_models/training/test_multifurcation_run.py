"""A training from beginning to end: stopped and gone on with, measured, saved, served."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engines.base import ChatMessage, TokenIds
from reward_models.base import UNSEEN
from reward_models.multifurcation import open_judge
from reward_models.training import multifurcation_run
from reward_models.training.errors import TrainingError
from reward_models.training.low_rank import tensors_of
from reward_models.training.multifurcation import Multifurcation, Shape, load_network, predict
from reward_models.training.multifurcation_release import write_release
from reward_models.training.multifurcation_run import (
    METRICS,
    STATE,
    Run,
    RunOptions,
    epoch_batches,
)
from reward_models.training.nearness import measure
from reward_models.training.token_rewards import TokenRewards, unseen_mask
from tests.unit.reward_models.training.texts import LAYERS, corpus, write_base

TEXTS = corpus(24)
OPTIONS = RunOptions(lr=3e-3, epochs=3, decay_share=0.5, max_grad_norm=5.0, save_every=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("run"))


class Killed(Exception):
    pass


def weights(network: Multifurcation) -> list[torch.Tensor]:
    return [*tensors_of(network.adapters).values(), network.bias.detach().clone()]


@pytest.mark.parametrize("last_step", [1, 4, 7, 14])
def test_a_killed_run_ends_as_one_that_was_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    whole = load_network(base, OPTIONS.shape)
    Run(whole, TEXTS, OPTIONS, tmp_path / "whole").finish()

    steps = 0

    def collate_or_die(texts: Sequence[TokenRewards], device: torch.device) -> object:
        nonlocal steps
        steps += 1
        if steps > last_step:
            raise Killed
        return collate(texts, device)

    collate = multifurcation_run.collate
    monkeypatch.setattr(multifurcation_run, "collate", collate_or_die)
    with pytest.raises(Killed):
        Run(load_network(base, OPTIONS.shape), TEXTS, OPTIONS, tmp_path / "cut").finish()
    monkeypatch.setattr(multifurcation_run, "collate", collate)

    again = load_network(base, OPTIONS.shape)
    run = Run(again, TEXTS, OPTIONS, tmp_path / "cut")
    assert run.step == last_step // 4 * 4
    run.finish()
    assert run.step == run.num_steps == 15
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(again), strict=True))
    written = [(tmp_path / name / METRICS).read_text() for name in ("whole", "cut")]
    assert written[0] == written[1]
    assert [json.loads(line)["step"] for line in written[0].splitlines()] == [4, 8, 12, 15]


def test_it_learns_and_says_how_well(base: Path, tmp_path: Path) -> None:
    texts, shape = corpus(400), Shape(rank=8, alpha=8.0)
    network = load_network(base, shape)
    options = RunOptions(
        shape=shape, lr=1e-2, bias_lr=0.3, epochs=4, texts_per_batch=20, save_every=20
    )
    before = measure(network, texts)
    assert before.num_rewards == sum(one.num_rewards for one in texts)
    after = Run(network, texts, options, tmp_path).finish()
    assert after.num_rewards == sum(one.num_rewards for one in texts if one.split == "validation")
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines[-1]["validation_mse"] == pytest.approx(after.mse)
    assert lines[-1]["validation_within_1"] == pytest.approx(after.within_one)
    assert after.mse < before.mse / 2
    assert after.within_one > before.within_one
    assert lines[-1]["train_mse"] < lines[0]["train_mse"]


def test_a_folder_belongs_to_its_options_and_data(base: Path, tmp_path: Path) -> None:
    network = load_network(base, OPTIONS.shape)
    Run(network, TEXTS, OPTIONS, tmp_path).finish()
    assert Run(network, TEXTS, OPTIONS, tmp_path).step == 15
    for texts, options in [
        (TEXTS[:-1], OPTIONS),
        (TEXTS, RunOptions(lr=3e-3, epochs=4, save_every=4)),
    ]:
        with pytest.raises(TrainingError, match="another base, options or data"):
            Run(network, texts, options, tmp_path)


def test_a_folder_belongs_to_its_base(base: Path, tmp_path: Path) -> None:
    Run(load_network(base, OPTIONS.shape), TEXTS, OPTIONS, tmp_path).finish()
    other = load_network(base, OPTIONS.shape)
    with torch.no_grad():
        other.decoder.model.norm.weight[0] += 1e-3
    with pytest.raises(TrainingError, match="another base"):
        Run(other, TEXTS, OPTIONS, tmp_path)


def test_each_epoch_has_every_text_once_in_another_order() -> None:
    options = RunOptions(texts_per_batch=5)
    names = []
    for epoch in range(2):
        batches = epoch_batches(TEXTS, options, epoch)
        assert len(batches) == 5
        names.append([text.conv_id for batch in batches for text in batch])
        assert sorted(names[-1]) == sorted(text.conv_id for text in TEXTS)
    assert names[0] != names[1]
    assert epoch_batches(TEXTS, options, 1) == epoch_batches(TEXTS, options, 1)


def test_impossible_runs_are_refused(base: Path, tmp_path: Path) -> None:
    held_out = [text for text in TEXTS if text.split == "validation"]
    with pytest.raises(TrainingError, match="none of the 6 texts"):
        Run(load_network(base, OPTIONS.shape), held_out, OPTIONS, tmp_path)
    for wrong in ({"lr": 0.0}, {"bias_lr": -1e-3}, {"max_grad_norm": 0.0}, {"decay_share": 1.5}):
        with pytest.raises(TrainingError, match="must be above 0"):
            RunOptions(**wrong)
    assert math.isnan(measure(load_network(base, OPTIONS.shape), []).mse)
    assert not (tmp_path / STATE).exists()


async def test_what_is_saved_is_served_with_the_same_rewards(base: Path, tmp_path: Path) -> None:
    """The released files, read by the loader: every reward of every text to 1e-5."""
    shape = Shape()
    network = load_network(base, shape)
    options = RunOptions(shape=shape, lr=1e-2, epochs=2)
    Run(network, TEXTS, options, tmp_path / "run").finish()
    model = tmp_path / "mrm"
    ends = network.decoder.config.eos_token_id
    unseen = unseen_mask(TEXTS, len(network.bias), ends)
    about = {"id": "tiny-mrm", "prefill": "shown"}
    write_release(model, network, shape, unseen, base=base, about=about)

    assert {path.name for path in model.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "lm_head_bias.pt",
        "unseen_mask.pt",
        "bough.json",
    }
    config = json.loads((model / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 4, "none")
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert set(load_file(model / "adapter_model.safetensors")) == {
        f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{part}.weight"
        for layer in range(LAYERS)
        for name in "qv"
        for part in "AB"
    }

    judge = open_judge("tiny-mrm", str(model), {"device": "cpu", "kv_tokens": 4096})
    messages: tuple[ChatMessage, ...] = ({"role": "user", "content": "how many?"},)
    checked = 0
    try:
        claim = await judge.open(messages)
        prompt = claim.token_ids
        texts = [behind(prompt, text) for text in TEXTS]
        for text, expected in zip(texts, predict(network, texts), strict=True):
            for at in range(len(prompt), len(text.token_ids)):
                longer = claim.fork().extend(text.token_ids[len(prompt) : at])
                (row,) = await judge.next_rewards([longer])
                longer.release()
                token = text.token_ids[at]
                (value,) = row.at([token])
                assert value == (UNSEEN if unseen[token] else pytest.approx(expected[at], abs=1e-5))
                checked += not unseen[token]
        claim.release()
    finally:
        await judge.aclose()
    assert checked > 100


def behind(prompt: TokenIds, text: TokenRewards) -> TokenRewards:
    """The same tokens as the answer to a prompt."""
    rewards = (*(math.nan for _ in prompt), *text.rewards)
    return TokenRewards(text.conv_id, text.split, prompt + text.token_ids, rewards)
