"""Training of the masked-diffusion sapling, on networks too small to learn much."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.diffusion.denoiser import read_checkpoint
from engines.diffusion.engine import open_engine
from models.tasks import tales, totals
from models.tasks.base import split_of
from models.training.batches import Chat
from models.training.diffusion import (
    MASK,
    DiffusionStage,
    canvases,
    corpus,
    learning_rate,
    masked_loss,
    reply_of,
    train_diffusion,
)
from models.training.diffusion_card import measure
from models.training.masked import MaskedNetwork, MaskedShape, load_masked, save_masked
from models.training.tokenizer import save_tokenizer, train_tokenizer

STAGE = DiffusionStage("test", seed=1, steps=30, decay_share=0.5, rows=8, warmup_steps=5)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(0, list(corpus(0))[:2000], (MASK,)))


def network_of(chat: Chat) -> MaskedNetwork:
    (mask_id,) = chat.encode(MASK)
    torch.manual_seed(0)
    shape = MaskedShape(
        mask_id + 1000, mask_id, chat.end_id, chat.pad_id, d_model=32, n_layers=1, n_heads=2
    )
    return MaskedNetwork(shape)


def bound(network: MaskedNetwork, ids: torch.Tensor, prompt: int) -> float:
    """The loss, with the same masks at every call."""
    torch.manual_seed(3)
    with torch.inference_mode():
        return float(masked_loss(network, ids, prompt, network.shape.mask_token_id))


def test_rows_are_questions_of_the_split_and_full_canvases(chat: Chat) -> None:
    batches = canvases(chat, STAGE)
    lengths = set()
    for _ in range(6):
        ids, prompt = next(batches)
        lengths.add(ids.shape[1] - prompt)
        for row in ids.tolist():
            text = chat.decode(row[:prompt])
            assert split_of(text) == "train"
            canvas = row[prompt:]
            end = canvas.index(chat.end_id) if chat.end_id in canvas else len(canvas)
            assert set(canvas[end:]) <= {chat.end_id}
            answer, asked = chat.decode(canvas[:end]), totals.read(text)
            if asked is not None:
                assert totals.is_right(asked, answer)
            else:
                tale = tales.read(text)
                assert tale is not None
                assert tales.is_right(tale, answer)
    assert lengths <= {24, 32, 40}


def test_answers_fit_the_canvas(chat: Chat) -> None:
    rng = random.Random(0)
    drawn = [draw(rng) for _ in range(300) for draw in (totals.draw, tales.draw)]
    assert max(len(chat.encode(reply_of(problem))) for problem in drawn) < 32


def test_only_masked_answers_count(chat: Chat) -> None:
    network = network_of(chat)
    ids, prompt = next(canvases(chat, STAGE))
    loss = bound(network, ids, prompt)
    uniform = float(torch.log(torch.tensor(float(network.shape.vocab_size))))
    assert loss == pytest.approx(uniform, rel=0.25)  # a new network knows nothing
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    masked_loss(network, ids, prompt, network.shape.mask_token_id)
    [given] = seen
    assert torch.equal(given[:, :prompt], ids[:, :prompt])
    hidden = given != ids
    assert set(given[hidden].tolist()) == {network.shape.mask_token_id}
    shares = hidden[:, prompt:].float().mean(1)
    assert shares.min() < 0.3 < 0.7 < shares.max()  # evenly spaced over the rows


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(STAGE, step) for step in range(STAGE.steps)]
    assert rates[0] < rates[4] == rates[14] == STAGE.peak_lr
    assert rates[15:] == sorted(rates[15:], reverse=True)
    assert rates[-1] < 0.15 * STAGE.peak_lr


async def test_what_is_trained_is_read_by_the_engine(chat: Chat, tmp_path: Path) -> None:
    network = network_of(chat)
    ids, prompt = next(canvases(chat, STAGE))
    before = bound(network, ids, prompt)
    train_diffusion(replace(STAGE, steps=10), network, chat, tmp_path)
    assert bound(network, ids, prompt) < before - 0.2
    again = load_masked(tmp_path)
    served = read_checkpoint(tmp_path, torch.float32, torch.device("cpu"))
    assert served.mask_id == network.shape.mask_token_id
    assert served.eos_ids == {chat.end_id}
    row = ids[:1]
    spots = torch.arange(row.shape[1])
    logits = served.network.logits(row, [row.shape[1]], torch.zeros_like(spots), spots)
    with torch.inference_mode():
        torch.testing.assert_close(logits, again(row)[0], atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LLaDAModelLM"]


async def test_the_card_is_measured_on_the_engine(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(0, list(corpus(0))[:500], (MASK,))
    chat = Chat(tokenizer)
    save_tokenizer(tokenizer, tmp_path, 256)
    save_masked(network_of(chat), tmp_path)
    engine = open_engine("tiny", str(tmp_path), {"kernel": "random"})
    figures = await measure(engine, "totals", n=2, samples=2, seed=1)
    assert figures["totals: right"].n == 2
    assert figures["totals: nfe"].value == 32.0
    assert figures["totals: worth, best of 2"].value >= figures["totals: worth"].value
    await engine.aclose()
