"""Training data: padding, Monte-Carlo values, likelihoods, and the fit of a head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.registry import bundled
from models.tasks import sums
from models.training.batches import sums_batches
from models.training.generator import STAGES, learning_rate
from models.training.measure import load_chat
from models.training.network import Llama, Shape
from models.training.process_data import rows_of, split_steps
from models.training.rollouts import sample
from reward_models.training.process import (
    ProcessRow,
    StepHead,
    fit_head,
    likelihood_sums,
    load_head,
    read_rows,
    save_head,
)

CHAT = load_chat(bundled()["sapling-sums"])
TINY = Shape(vocab_size=40, hidden_size=16, intermediate_size=24, num_attention_heads=2)


def _tiny() -> Llama:
    torch.manual_seed(0)
    return Llama(TINY).eval()


def test_batches_weigh_solutions_and_not_padding() -> None:
    batch = next(sums_batches(CHAT, 1, 1024, (sums.BROAD,), (1.0,)))
    assert batch.ids.numel() <= 1024
    assert (batch.weights[batch.ids == CHAT.pad_id] == 0).all()
    assert (batch.weights[batch.ids == CHAT.end_id] > 0).all()
    assert (batch.weights[:, 0] == 0).all()


def test_values_are_shares_of_completions_through_a_prefix() -> None:
    problem = sums.Problem("text", ("20+5=25", "25-5=20"), 20)
    texts = [
        "20+5=25\n25-5=20\nThe answer is 20.",
        "20+5=25\n25-5=21\nThe answer is 21.",
        "20+5=26\n26-5=21\nThe answer is 21.",
        "20+5=25\n25-5=20\nThe answer is 20.",
    ]
    completions = [[*CHAT.encode(text), CHAT.end_id] for text in texts]
    rows = rows_of(problem, [1, 2, 3], completions, CHAT)
    assert len(rows) == 3
    values = [[value for _, value, _ in row.targets] for row in rows]
    assert values[0] == [pytest.approx(2 / 3), 1.0, 1.0]
    assert values[1] == [pytest.approx(2 / 3), 0.0, 0.0]
    assert values[2] == [0.0, 0.0, 0.0]
    assert rows[0].targets[0][2] == 2.0
    last_positions = [row.targets[-1][0] for row in rows]
    assert last_positions == [len(row.ids) - 1 for row in rows]


def test_steps_end_at_newlines_and_at_the_last_token() -> None:
    ids = CHAT.encode("1+1=2\nThe answer is 2.")
    assert split_steps([*ids, CHAT.end_id], CHAT) == [5, len(ids) - 1]
    assert split_steps(CHAT.encode("1\n"), CHAT) == [1]
    assert split_steps([CHAT.end_id], CHAT) == []


def test_samples_do_not_depend_on_neighbours() -> None:
    network = _tiny()
    prompts = [[3, 4, 5], [7], [9, 8, 7, 6, 5, 4]]
    together = sample(network, prompts, 2, num_samples=2, max_tokens=9, temperature=0)
    for prompt, (first, second) in zip(prompts, together, strict=True):
        ids = list(prompt)
        for token in first:
            assert int(network(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)
        assert first == second


def test_sampling_repeats_with_its_seed() -> None:
    network = _tiny()
    once, again, other = (
        sample(network, [[3, 4]], 2, num_samples=4, max_tokens=8, seed=seed) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


def test_fit_learns_a_reading(tmp_path: Path) -> None:
    # The last token decides the target, which the hidden state shows.
    network, head = _tiny(), StepHead(TINY.hidden_size)
    rows = [ProcessRow((5, 6, 10 + at % 2), 1, ((2, float(at % 2), 1.0),)) for at in range(40)]
    read = read_rows(network, rows, pad_id=0)
    assert read[0].shape == (40, TINY.hidden_size)
    assert fit_head(head, read, l2=1e-4) < 0.3
    save_head(head, tmp_path)
    ids = torch.tensor([[5, 6, 10], [5, 6, 11]])
    with torch.inference_mode():
        hidden = network.hidden(ids)
        so_far = likelihood_sums(network, hidden, ids, torch.tensor([1, 1]))
        low, high = load_head(tmp_path)(hidden, so_far)[:, -1].tolist()
    assert low < -1 < 1 < high


def test_likelihood_sums_are_those_of_the_answer_alone() -> None:
    network = _tiny()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    sums = likelihood_sums(network, network.hidden(ids), ids, torch.tensor([2, 1]))
    logps = network(ids).log_softmax(-1)
    assert sums[0, :2].tolist() == [0.0, 0.0]
    assert sums[1, 0].item() == 0.0
    torch.testing.assert_close(sums[0, 2], logps[0, 1, 5])
    torch.testing.assert_close(sums[0, 3], logps[0, 1, 5] + logps[0, 2, 6])
    torch.testing.assert_close(sums[1, 1], logps[1, 0, 8])


def test_learning_rate_rises_stays_and_falls() -> None:
    stage = STAGES[-1]
    assert learning_rate(stage, 0) == stage.peak_lr / stage.warmup_steps
    assert learning_rate(stage, stage.warmup_steps) == stage.peak_lr
    assert learning_rate(stage, stage.steps - 1) < stage.peak_lr / 20
