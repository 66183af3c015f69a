"""Makes the guarding saplings: tokenizer, generator, two judges, and their cards."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from models.evaluate import Measured
from models.tasks.guarded_answers import HEDGE
from models.training import guarded
from models.training.batches import Chat
from models.training.cards import Facts, write_about, write_card
from models.training.copying import start_copying
from models.training.generator import Stage, stage_words, train_stage
from models.training.guarded import JudgeRun
from models.training.guarded_cards import (
    GUARDED_ABOUT,
    GUARDED_CARD,
    JUDGE_CARD,
    ROLES,
    judge_about,
)
from models.training.guarded_judge import Judge
from models.training.guarded_measure import generator_figures, judge_figures, judged_answers
from models.training.measure import load_chat
from models.training.network import Llama, load_checkpoint
from models.training.tokenizer import save_tokenizer, train_tokenizer

DIRECTORY = "sapling_guarded"
RUNS = (guarded.TEACHER, guarded.JUDGE)


def make_guarded(
    out: Path, device: str, hardware: str, *, is_compiled: bool, scale: float, n: int, seed: int
) -> None:
    """Train all three below a directory, then measure them and write their cards.

    Args:
        out: Where the models' directories are.
        device: ``cpu`` or ``cuda``.
        hardware: What it is, in words.
        is_compiled: Whether torch compiles the losses.
        scale: Of the training.
        n: Problems to measure on.
        seed: Of those problems.
    """
    base = out / DIRECTORY
    minutes = {DIRECTORY: _minutes(partial(_generator, base, device, is_compiled, scale))}
    for run in RUNS:
        make = partial(_judge, base, _directory(out, run), run, device, is_compiled, scale)
        minutes[_directory(out, run).name] = _minutes(make)
    write_guarded_cards(out, device, hardware, minutes, n=n, seed=seed)


def write_guarded_cards(
    out: Path, device: str, hardware: str, minutes: Mapping[str, float], *, n: int, seed: int
) -> None:
    """Measure the saved weights on the test split; write the cards and print the figures."""
    base = out / DIRECTORY
    chat, network = load_chat(base), load_checkpoint(base, device)
    common = {"hardware": hardware, "seed": seed, "hedge": HEDGE}
    figures = generator_figures(network, chat, n=n, seed=seed)
    values = {
        **common,
        **_sizes(network),
        "training": "; ".join(stage_words(stage) for stage, _ in guarded.STAGES)
        + f"; weights seed {guarded.NETWORK_SEED}.",
        "generator_minutes": minutes[DIRECTORY],
        "vocab_size": network.shape.vocab_size,
        "tokenizer_seed": guarded.TOKENIZER_SEED,
    }
    write_about(base, GUARDED_ABOUT)
    write_card(base, GUARDED_CARD, Facts(values, figures))
    _print("sapling-guarded", figures)
    answers = judged_answers(network, chat, n=n, seed=seed)
    judges = {run: Judge.load(_directory(out, run), device) for run in RUNS}
    for run, other in (RUNS, RUNS[::-1]):
        figures = judge_figures(judges[run], judges[other], answers, chat)
        values = {
            **common,
            **_sizes(judges[run].network),
            **dataclasses.asdict(run),
            "other": other.name,
            "role": ROLES[run.name],
            "training": stage_words(run.stage) + ".",
            "minutes": minutes[_directory(out, run).name],
            "language_weight": guarded.LANGUAGE_WEIGHT,
            "num_begun": 4 * n,
            "num_others": n,
        }
        write_about(_directory(out, run), judge_about(run.name))
        write_card(_directory(out, run), JUDGE_CARD, Facts(values, figures))
        _print(run.name, figures)


def _generator(directory: Path, device: str, is_compiled: bool, scale: float) -> None:
    tokenizer = train_tokenizer(guarded.TOKENIZER_SEED, guarded.tokenizer_corpus())
    shape = guarded.shape_of(tokenizer.get_vocab_size(), guarded.SIZES)
    save_tokenizer(tokenizer, directory, shape.max_position_embeddings)
    chat = Chat(tokenizer)
    torch.manual_seed(guarded.NETWORK_SEED)
    network = Llama(shape)
    start_copying(network)
    network.to(device)
    for stage, opening_weight in guarded.STAGES:
        train_stage(
            _scaled(stage, scale),
            network,
            chat,
            directory,
            device=device,
            is_compiled=is_compiled,
            batches=guarded.generator_batches(
                chat, stage.seed, stage.tokens_per_batch, opening_weight
            ),
        )


def _judge(
    base: Path, directory: Path, run: JudgeRun, device: str, is_compiled: bool, scale: float
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, directory / name)
    chat = load_chat(directory)
    vocab_size = load_checkpoint(base).shape.vocab_size
    run = dataclasses.replace(run, stage=_scaled(run.stage, scale))
    torch.manual_seed(run.stage.seed)
    network = Llama(guarded.shape_of(vocab_size, run.sizes))
    start_copying(network)
    judge = Judge(network).to(device)
    train_stage(
        run.stage,
        judge.network,
        chat,
        directory,
        device=device,
        is_compiled=is_compiled,
        batches=guarded.judge_batches(chat, run),
        loss=judge,
        save=lambda: judge.save(directory, chat),
    )


def _directory(out: Path, run: JudgeRun) -> Path:
    return out / run.name.replace("-", "_")


def _scaled(stage: Stage, scale: float) -> Stage:
    return dataclasses.replace(stage, steps=max(1, round(stage.steps * scale)))


def _minutes(make: Callable[[], None]) -> float:
    started = time.monotonic()
    make()
    return (time.monotonic() - started) / 60


def _sizes(network: Llama) -> dict[str, int]:
    shape = network.shape
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "layers": shape.num_hidden_layers,
        "hidden": shape.hidden_size,
        "heads": shape.num_attention_heads,
    }


def _print(name: str, figures: Mapping[str, Measured]) -> None:
    for figure, one in figures.items():
        print(f"{name}, {figure}: {one.value:.4f} [{one.low:.4f}, {one.high:.4f}] n={one.n}")
