"""Makes the saplings again, part by part: tokenizers, generators, judges, cards.

``--parts`` chooses: ``generator``, ``process`` (rollouts and the judge of steps) and ``cards`` are
the saplings for sums, ``guarded`` and ``mrm`` those of the guarding task, ``diffusion`` the masked
one. ``--device`` holds for all but ``mrm`` and ``diffusion``, which are trained on the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.evaluate import (
    Measured,
    greedy_accuracy,
    held_out,
    pass_at,
    selection_accuracy,
    step_auroc,
    step_auroc_mc,
)
from models.tasks.base import solution_of
from models.training.batches import Chat
from models.training.cards import DECODER, Facts, write_generator, write_process
from models.training.diffusion import make_diffusion
from models.training.diffusion_card import write_card as write_diffusion_card
from models.training.generator import JUDGE_STAGE, STAGES, stage_words, train_stage
from models.training.guarded_make import make_guarded
from models.training.guarded_mrm import make_bundled
from models.training.measure import TorchGenerate, TorchJudge, load_chat
from models.training.network import Llama, Shape, load_checkpoint, save_checkpoint
from models.training.process_data import RolloutRun, process_rows
from models.training.tokenizer import save_tokenizer, train_tokenizer
from reward_models.training.process import StepHead, fit_head, read_rows, save_head

TOKENIZER_SEED = 0
NETWORK_SEED = 20
PARTS = ("generator", "process", "cards", "guarded", "mrm", "diffusion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    is_compiled = shutil.which("g++") is not None
    hardware = describe_hardware(options.device)
    print(f"hardware: {hardware}; compiled: {is_compiled}")
    base, judge = options.out / "sapling_sums", options.out / "sapling_prm"
    scale = options.scale
    noted = options.out / ".work" / "minutes.json"
    minutes: dict[str, float] = json.loads(noted.read_text()) if noted.exists() else {}
    if "generator" in options.parts:
        started = time.monotonic()
        make_generator(base, options.device, is_compiled, scale)
        minutes["generator_minutes"] = (time.monotonic() - started) / 60
    if "process" in options.parts:
        minutes |= make_process(base, judge, options.device, is_compiled, scale)
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(minutes))
    if "cards" in options.parts:
        write_cards(base, judge, options.device, hardware, minutes, options.n, options.seed)
    if "guarded" in options.parts:
        make_guarded(
            options.out,
            options.device,
            hardware,
            is_compiled=is_compiled,
            scale=scale,
            n=options.n,
            seed=options.seed,
        )
    if "mrm" in options.parts:
        make_bundled(options.out)
    if "diffusion" in options.parts:
        directory = options.out / "sapling_diffusion"
        make_diffusion(directory, scale)
        write_diffusion_card(directory, hardware, n=max(1, options.n // 10), seed=options.seed)
    return 0


def make_generator(directory: Path, device: str, is_compiled: bool, scale: float) -> None:
    """Train tokenizer and generator into a directory."""
    print(f"seeds: tokenizer {TOKENIZER_SEED}, weights {NETWORK_SEED}, stages", end=" ")
    print(", ".join(f"{stage.name} {stage.seed}" for stage in STAGES))
    tokenizer: Tokenizer = train_tokenizer(TOKENIZER_SEED)
    shape = Shape(vocab_size=tokenizer.get_vocab_size())
    save_tokenizer(tokenizer, directory, shape.max_position_embeddings)
    chat = Chat(tokenizer)
    torch.manual_seed(NETWORK_SEED)
    network = Llama(shape).to(device)
    for stage in STAGES:
        steps = max(1, round(stage.steps * scale))
        short = dataclasses.replace(stage, steps=steps)
        train_stage(short, network, chat, directory, device=device, is_compiled=is_compiled)
    save_checkpoint(network, directory, chat.begin_id, chat.end_id, chat.pad_id)


def make_process(
    base: Path, directory: Path, device: str, is_compiled: bool, scale: float
) -> dict[str, float]:
    """Train the judge's decoder, sample the generator's rollouts, fit the head; the minutes."""
    chat, network, run = load_chat(base), load_checkpoint(base, device), RolloutRun()
    print(f"seeds: judge {JUDGE_STAGE.seed}, rollouts {run.seed}")
    started = time.monotonic()
    decoder, at = load_checkpoint(base, device).train(), directory / DECODER
    at.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, at / name)
    stage = dataclasses.replace(JUDGE_STAGE, steps=max(1, round(JUDGE_STAGE.steps * scale)))
    train_stage(stage, decoder, chat, at, device=device, is_compiled=is_compiled)
    decoder = load_checkpoint(at, device)  # as rounded
    trained = time.monotonic()
    num_problems = max(8, round(run.num_problems * scale))
    rows = process_rows(network, chat, dataclasses.replace(run, num_problems=num_problems))
    sampled = time.monotonic()
    head = StepHead(network.shape.hidden_size).to(device)
    read = read_rows(decoder, rows, pad_id=chat.pad_id, device=device)
    print(f"head: {len(read[1])} steps, loss {fit_head(head, read, run.l2):.4f}")
    save_head(head, directory)
    return {
        "judge_minutes": (trained - started) / 60,
        "rollout_minutes": (sampled - trained) / 60,
        "process_minutes": (time.monotonic() - sampled) / 60,
    }


def write_cards(
    base: Path,
    judge: Path,
    device: str,
    hardware: str,
    minutes: dict[str, float],
    n: int,
    seed: int,
) -> None:
    """Measure the saved weights on the test split; write both cards and print the figures."""
    chat = load_chat(base)
    network = load_checkpoint(base, device)
    generate = TorchGenerate(network, chat, seed=seed)
    judged = TorchJudge.load(judge, device)

    async def measure() -> tuple[dict[str, Measured], dict[str, Measured]]:
        of_generator = {
            "greedy": await greedy_accuracy(generate, n=n, seed=seed),
            "pass32": await pass_at(generate, n=n, seed=seed),
        }
        picked = await selection_accuracy(generate, judged, n=n, seed=seed)
        of_generator["single, temperature 1"] = picked.pop("single")
        of_judge = {
            "prm_auroc": await step_auroc(generate, judged, n=n, seed=seed),
            "prm_auroc_mc": await step_auroc_mc(generate, judged, n=max(1, n // 8), seed=seed),
            **{f"{name} of 16": figure for name, figure in picked.items()},
        }
        return of_generator, of_judge

    of_generator, of_judge = asyncio.run(measure())
    values = {
        "generator_minutes": float("nan"),
        "judge_minutes": float("nan"),
        "rollout_minutes": float("nan"),
        "process_minutes": float("nan"),
        **minutes,
        **_sizes(chat, network, seed),
        "hardware": hardware,
        "seed": seed,
    }
    stages = "; ".join(stage_words(stage) for stage in STAGES)
    data = f"Tokenizer seed {TOKENIZER_SEED}, weights seed {NETWORK_SEED}."
    write_generator(base, Facts({**values, "data": data, "training": stages + "."}, of_generator))
    run = RolloutRun()
    data = _rollout_words(run)
    training = f"decoder: {stage_words(JUDGE_STAGE)}; head: L-BFGS, l2 {run.l2:g}."
    write_process(judge, Facts({**values, "data": data, "training": training}, of_judge))
    for name, figure in {**of_generator, **of_judge}.items():
        print(f"{name}: {figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}] n={figure.n}")


def describe_hardware(device: str) -> str:
    """The processor that did it, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} cores, {platform.machine()}, torch {torch.__version__}"


def _sizes(chat: Chat, network: Llama, seed: int) -> dict[str, float]:
    problems = held_out(200, seed)
    prompts = [len(chat.prompt(problem.text)) for problem in problems]
    solutions = [len(chat.encode(solution_of(problem))) for problem in problems]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "vocab_size": network.shape.vocab_size,
        "prompt_tokens": sum(prompts) / len(prompts),
        "solution_tokens": sum(solutions) / len(solutions),
    }


def _rollout_words(run: RolloutRun) -> str:
    return f"{run.num_problems:,} problems, {run.num_samples} completions each, seed {run.seed}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.training", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--out", type=Path, default=Path("models"), help="default: models")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--scale", type=float, default=1.0, help="of all training (default 1)")
    parser.add_argument("--n", type=int, default=400, help="problems to measure on (default 400)")
    parser.add_argument("--seed", type=int, default=7, help="of the measured problems (default 7)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
