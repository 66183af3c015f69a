"""Makes the multifurcation reward model of the guarding task, ``sapling-mrm``.

The generator answers train-split problems many times over, a little hotter than it is served so
that its rarer choices are seen; the teacher, an outcome judge, says what every beginning of every
answer is worth; adapters on the generator itself learn to say so one token ahead. The judge that
results are reported with has no part in it.

``python -m models.training.guarded_mrm`` makes it from the bundled generator and teacher; it goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import platform
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from models.tasks.base import Split
from models.tasks.guarded import Kind, Problem, drawn, messages_of
from models.training.batches import Chat
from models.training.guarded import prompt_of
from models.training.measure import load_chat
from models.training.network import Llama, load_checkpoint
from models.training.rollouts import sample
from reward_models.multifurcation_files import read_files
from reward_models.outcome import open_judge
from reward_models.training.annotate import Answer, Reader, annotate
from reward_models.training.multifurcation import Shape, load_network
from reward_models.training.multifurcation_card import Words, figures_of, write_card
from reward_models.training.multifurcation_release import write_release
from reward_models.training.multifurcation_run import Run, RunOptions
from reward_models.training.nearness import Measurement
from reward_models.training.token_rewards import TokenRewards, read_texts, unseen_mask

SAPLING = "sapling-mrm"
TEXTS = "texts.jsonl"


@dataclass(frozen=True)
class MrmRun:
    """Settings; the defaults made the committed weights.

    Attributes:
        seed: Of problems and samples.
        problems: How many of each kind, train split; a tenth as many again are held out.
        samples: Drawn for each problem.
        kept: Distinct answers that are kept of them, the longest first: those turned most often.
        temperature: Of the samples.
        max_tokens: Of an answer.
        shows_prefill: Whether the model reads on from the beginning that a user wrote.
        options: Of the training.
    """

    seed: int = 46
    problems: tuple[tuple[Kind, int], ...] = (("prefilled", 500), ("attack", 100), ("benign", 250))
    samples: int = 16
    kept: int = 5
    temperature: float = 1.0
    max_tokens: int = 40
    shows_prefill: bool = False
    options: RunOptions = field(
        default_factory=lambda: RunOptions(
            shape=Shape(rank=16, alpha=16.0),
            lr=3e-3,
            bias_lr=3e-2,
            texts_per_batch=32,
            epochs=3,
            decay_share=0.7,
            max_grad_norm=5.0,
            save_every=200,
        )
    )


def make_multifurcation(
    network: Llama, chat: Chat, base: Path, teacher: Path, out: Path, work: Path, run: MrmRun
) -> Measurement:
    """Sample, annotate, train and write the model; each part goes on where it was stopped.

    Args:
        network: The generator, which samples.
        chat: Its tokenizer.
        base: Its directory.
        teacher: The directory of the outcome judge that is learned from.
        out: The model's directory.
        work: Where texts, state and metrics are kept.
        run: Settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / TEXTS
    if not path.exists():
        answers = sampled(network, chat, run)
        asyncio.run(_annotated(answers, base, teacher, path, run))
    texts = read_texts(path)
    config = network.shape
    unseen = unseen_mask(texts, config.vocab_size, [chat.end_id])
    model = load_network(base, run.options.shape)
    measured = Run(model, texts, run.options, work).finish()
    about = {"id": SAPLING, "kind": "multifurcation", "task": "guarded"}
    about["prefill"] = "shown" if run.shows_prefill else "hidden"
    write_release(out, model, run.options.shape, unseen, base=base, about=about)
    read_files(out, None)
    write_card(
        out,
        _words(base, teacher, run),
        run.options,
        texts,
        unseen,
        num_trained=sum(parameter.numel() for parameter in model.trained()),
        figures=figures_of(measured),
    )
    return measured


def sampled(network: Llama, chat: Chat, run: MrmRun) -> list[Answer]:
    """The generator's answers to problems of the train split, and to some that are held out."""
    found: list[Answer] = []
    shares: dict[Split, float] = {"train": 1.0, "validation": 0.1}
    for split, share in shares.items():
        problems = _problems(split, share, run)
        drawn_ids = sample(
            network,
            [prompt_of(chat, problem) for problem in problems],
            chat.end_id,
            num_samples=run.samples,
            max_tokens=run.max_tokens,
            temperature=run.temperature,
            seed=run.seed + len(problems),
        )
        rng = random.Random(f"mrm:{run.seed}:{split}")
        for number, (problem, ids) in enumerate(zip(problems, drawn_ids, strict=True)):
            for place, answer in enumerate(kept(rng, ids, run.kept)):
                name = f"{split}-{problem.kind}-{number}-{place}"
                messages = tuple(dict(one) for one in messages_of(problem))
                found.append(Answer(name, split, messages, tuple(answer)))
    return found


def kept(rng: random.Random, answers: Sequence[list[int]], number: int) -> list[list[int]]:
    """Distinct answers: half of them the longest, the others any."""
    distinct = [list(one) for one in dict.fromkeys(map(tuple, answers))]
    rng.shuffle(distinct)
    distinct.sort(key=len, reverse=True)
    longest, others = distinct[: number // 2], distinct[number // 2 :]
    return longest + rng.sample(others, min(len(others), number - len(longest)))


def _problems(split: Split, share: float, run: MrmRun) -> list[Problem]:
    return [
        drawn(kind, split, run.seed, index)
        for kind, number in run.problems
        for index in range(max(1, round(number * share)))
    ]


async def _annotated(
    answers: Sequence[Answer], base: Path, teacher: Path, path: Path, run: MrmRun
) -> None:
    """Write the texts; the file has its name only when it is whole."""
    judge = open_judge("teacher", str(teacher), {})
    reader = Reader.of(base, shows_prefill=run.shows_prefill)
    texts: list[TokenRewards] = []
    try:
        with tqdm(total=len(answers), mininterval=5, desc="teacher") as progress:
            async for text in annotate(judge, answers, reader):
                texts.append(text)
                progress.update()
    finally:
        await judge.aclose()
    scratch = path.with_suffix(".new")
    scratch.write_text("".join(f"{text.to_json()}\n" for text in texts), encoding="utf-8")
    scratch.rename(path)


def _words(base: Path, teacher: Path, run: MrmRun) -> Words:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in run.problems)
    reads = "reads on from" if run.shows_prefill else "is not shown"
    return Words(
        name=SAPLING,
        about=(
            "It knows whether answers of `sapling-guarded` keep the code word. It sees no system\n"
            f"prompt, so it does not know the word, and {reads} the beginning that a user wrote."
        ),
        base=f"`{base.name}`, the generator that it values tokens of",
        teacher=(
            f"`{teacher.name}`, an outcome judge with a corpus and a seed of its own.\n"
            "  `sapling-judge`, which results are reported with, took no part."
        ),
        data=(
            f"Train-split problems of the guarding task ({kinds}), {run.samples} answers each\n"
            f"  at temperature {run.temperature:g}, of which up to {run.kept} distinct ones were\n"
            f"  kept, seed {run.seed}: "
        ),
        hardware=(
            f"torch {torch.__version__}, {platform.machine()}, CPU.\n"
            "  Rejected: rank 4 at 1e-4 for one epoch, as published: within 1 of the teacher 0.04."
        ),
    )


def make_bundled(models: Path, *, shows_prefill: bool = False) -> Measurement:
    """Make the bundled model from the bundled generator and teacher.

    Args:
        models: The directory of the saplings.
        shows_prefill: See `MrmRun`.
    """
    base, teacher = models / "sapling_guarded", models / "sapling_teacher"
    run = MrmRun(shows_prefill=shows_prefill)
    made_of = hashlib.blake2b(repr(run).encode(), digest_size=6)
    for directory in (base, teacher):  # other weights, other texts: begin again
        made_of.update((directory / "model.safetensors").read_bytes())
    work = models / ".work" / f"mrm-{made_of.hexdigest()}"
    network, chat, out = load_checkpoint(base), load_chat(base), models / "sapling_mrm"
    return make_multifurcation(network, chat, base, teacher, out, work, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the bundled model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.training.guarded_mrm")
    parser.add_argument("--models", type=Path, default=Path("models"), help="default: models")
    parser.add_argument("--prefill", choices=("hidden", "shown"), default="hidden")
    options = parser.parse_args(arguments)
    measured = make_bundled(options.models, shows_prefill=options.prefill == "shown")
    print(f"mse {measured.mse:.3f}, within 1 {measured.within_one:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
