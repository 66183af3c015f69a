"""Partial supervision: the loss by hand, what it moves and what it must not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from reward_models.training.errors import TrainingError
from reward_models.training.low_rank import attach, restore, tensors_of
from reward_models.training.multifurcation import (
    Shape,
    came_next,
    collate,
    load_network,
    predict,
    squared_errors,
)
from reward_models.training.token_rewards import TokenRewards
from tests.unit.reward_models.training.texts import LAYERS, corpus, write_base

NAN = math.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("training"))


def test_the_worked_loss_of_the_specification() -> None:
    """Example 6C: tokens [2, 0, 3]; the head is the identity, so that a state is its rewards."""
    rewards_of_next = torch.tensor([[0.5, 1.0, -1.0, 2.0], [0.0, 0.5, 1.5, -2.0]])
    rewards_of_next.requires_grad_()
    text = TokenRewards("c", "train", (2, 0, 3), (NAN, 1.5, -1.0))
    batch = collate([text])
    predicted = came_next(rewards_of_next, torch.eye(4), torch.zeros(4), batch.ids[0, 1:])
    losses = squared_errors(predicted, batch.rewards[0, 1:])
    assert losses.tolist() == [1.0, 1.0]
    losses.sum().backward()
    assert rewards_of_next.grad is not None
    assert rewards_of_next.grad.tolist() == [[-2.0, 0, 0, 0], [0, 0, 0, -2.0]]


def test_predictions_are_the_logits_of_what_came_next(base: Path) -> None:
    network = load_network(base, Shape())
    with torch.no_grad():
        for parameter in network.trained():
            parameter.normal_(std=0.1)
    texts = corpus(7)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stems = {path: adapter for path, adapter in network.adapters.items()}
    with torch.no_grad():
        for path, adapter in stems.items():
            plain.get_submodule(path).weight += adapter.lora_B @ adapter.lora_A
    for text, found in zip(texts, predict(network, texts, texts_per_batch=3), strict=True):
        logits = plain(torch.tensor([text.token_ids])).logits[0] + network.bias
        assert math.isnan(found[0])
        expected = [logits[at, token].item() for at, token in enumerate(text.token_ids[1:])]
        assert found[1:] == pytest.approx(expected, abs=1e-4)


def test_padding_and_tokens_without_a_reward_teach_nothing(base: Path) -> None:
    """Per token, a text teaches the same beside a longer one as alone."""
    network = load_network(base, Shape())
    short = TokenRewards("a", "train", (5, 6, 7), (NAN, NAN, 1.0))
    long = TokenRewards("b", "train", (8, 9, 10, 11, 12), (NAN, 1.0, 2.0, NAN, 3.0))
    alone = [collate([short]), collate([long])]
    together = collate([short, long])
    losses = [squared_errors(network(one.ids), one.rewards) for one in (*alone, together)]
    assert [len(one) for one in losses] == [1, 3, 4]
    assert torch.allclose(torch.cat(losses[:2]), losses[2], atol=1e-5)
    assert together.num_rewards == 4


def test_only_the_adapters_and_the_bias_learn(base: Path) -> None:
    network = load_network(base, Shape(rank=2, alpha=8.0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = collate(corpus(8))
    optimizer = torch.optim.AdamW(network.trained(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):  # in the first, A stays: B is zero
        squared_errors(network(batch.ids), batch.rewards).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {
        name for name, value in network.state_dict().items() if not value.equal(before[name])
    }
    stems = {f"layers.{n}.self_attn.{p}_proj" for n in range(LAYERS) for p in "qv"}
    assert {name for name in changed if "lora_" not in name} == {"bias"}
    assert {name.partition("model.")[2].rpartition(".")[0] for name in changed - {"bias"}} == stems
    assert len(changed) == 2 * len(stems) + 1
    decoder = network.decoder
    head = decoder.get_output_embeddings().weight
    assert head.data_ptr() == decoder.get_input_embeddings().weight.data_ptr()
    assert head.grad is None
    seen = {token for text in corpus(8) for token in text.token_ids}
    others = [token for token in range(len(network.bias)) if token not in seen]
    assert network.bias.detach()[others].abs().max() == 0


def test_adapters_keep_peft_names_and_come_back(base: Path) -> None:
    network, other = load_network(base, Shape(seed=1)), load_network(base, Shape(seed=2))
    saved = tensors_of(network.adapters)
    assert "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight" in saved
    restore(other.adapters, saved)
    assert all(value.equal(saved[name]) for name, value in tensors_of(other.adapters).items())
    saved.popitem()
    with pytest.raises(TrainingError, match="other names or shapes"):
        restore(other.adapters, saved)


@pytest.mark.parametrize(
    ("targets", "rank", "said"),
    [(("q_proj", "x_proj"), 4, "x_proj"), ((), 4, "no linear layer"), (("q_proj",), 0, "rank 0")],
)
def test_what_cannot_be_adapted_is_refused(
    base: Path, targets: tuple[str, ...], rank: int, said: str
) -> None:
    decoder = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(TrainingError, match=said):
        attach(decoder, targets, rank=rank, alpha=1.0, seed=0)


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not readable as a language model"):
        load_network(tmp_path, Shape())
