"""Trains a multifurcation reward model for any base: annotate answers, then train.

::

    python -m reward_models.training annotate ANSWERS TEXTS --base DIR --judge outcome --model DIR
    python -m reward_models.training train TEXTS OUT --base DIR --work DIR

Both can be stopped at any time and go on where they were when they are started again. The judge
is any kind that ``[reward_models.ID]`` of the server's settings knows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from engines.embedded.config import read_config
from engines.errors import EngineError
from reward_models.base import RewardModel
from reward_models.errors import RewardError
from reward_models.training.annotate import Answer, Reader, annotate, answer_of
from reward_models.training.errors import TrainingError
from reward_models.training.multifurcation import Shape, load_network
from reward_models.training.multifurcation_card import Words, figures_of, write_card
from reward_models.training.multifurcation_release import write_release
from reward_models.training.multifurcation_run import METRICS, Run, RunOptions
from reward_models.training.token_rewards import read_texts, unseen_mask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for what cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (RewardError, EngineError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


def _annotate(options: argparse.Namespace) -> None:
    asyncio.run(_annotated(options))


async def _annotated(options: argparse.Namespace) -> None:
    """Append a line for each answer that has none yet; say how many leave nothing to learn."""
    reader = Reader.of(
        options.base, shows_prefill=options.prefill == "shown", max_tokens=options.max_tokens
    )
    done = {text.conv_id for text in read_texts(_whole_lines(options.texts))}
    left = [one for one in _answers(options.answers, reader) if one.conv_id not in done]
    judge, num_written = _open_judge(options), 0
    try:
        with options.texts.open("a", encoding="utf-8") as file, tqdm(total=len(left)) as progress:
            async for text in annotate(judge, left, reader, candidates=options.candidates):
                file.write(text.to_json() + "\n")
                file.flush()
                progress.update()
                num_written += 1
    finally:
        await judge.aclose()
    if num_written < len(left):
        print(
            f"{len(left) - num_written} of {len(left)} answers were passed over: the prompt fills "
            f"--max-tokens {options.max_tokens}, or the judge values none of their beginnings"
        )


def _train(options: argparse.Namespace) -> None:
    texts = read_texts(options.texts)
    how = RunOptions(
        shape=Shape(options.rank, options.alpha, tuple(options.targets), options.seed),
        lr=options.lr,
        bias_lr=options.bias_lr,
        texts_per_batch=options.batch,
        epochs=options.epochs,
        decay_share=options.decay_share,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        save_every=options.save_every,
    )
    config = read_config(options.base)
    unseen = unseen_mask(texts, config.vocab_size, config.eos_ids)
    network = load_network(options.base, how.shape, options.device)
    measured = Run(network, texts, how, options.work).finish()
    about = {"id": options.out.name, "kind": "multifurcation", "prefill": options.prefill}
    write_release(options.out, network, how.shape, unseen, base=options.base, about=about)
    words = Words(
        name=options.out.name,
        about="",
        base=f"`{options.base.name}`",
        teacher=options.teacher,
        data="",
        hardware=f"{options.device}, {platform.machine()}, torch {torch.__version__}.",
    )
    num_trained = sum(parameter.numel() for parameter in network.trained())
    write_card(
        options.out,
        words,
        how,
        texts,
        unseen,
        num_trained=num_trained,
        figures=figures_of(measured),
    )
    print(f"{options.out}: within 1 of the teacher {measured.within_one:.3f}; {METRICS} has more")


def _answers(path: Path, reader: Reader) -> list[Answer]:
    end_id = min(reader.end_ids)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise TrainingError(f"{path}: cannot be read: {err}") from err
    found: dict[str, Answer] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            answer = answer_of(line, reader.tokenizer, end_id)
        except TrainingError as err:
            raise TrainingError(f"{path}:{number}: {err}") from err
        if answer.conv_id in found:
            raise TrainingError(f"{path}:{number}: conv_id {answer.conv_id!r} is there twice")
        found[answer.conv_id] = answer
    return list(found.values())


def _whole_lines(path: Path) -> Path:
    """The file with nothing behind its last line's end: what a kill cut off is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    written = path.read_bytes()
    if not written.endswith(b"\n"):
        path.write_bytes(written[: written.rfind(b"\n") + 1])
    return path


def _open_judge(options: argparse.Namespace) -> RewardModel:
    """The teacher, by the name of its kind.

    Raises:
        TrainingError: No plugin provides this kind, or its options are not a JSON object.
        RewardError: The judge cannot be opened.
    """
    kinds = {point.name: point for point in entry_points(group="bough.reward_models")}
    if options.judge not in kinds:
        raise TrainingError(f"no judge of kind {options.judge!r}; there are {', '.join(kinds)}")
    try:
        more = json.loads(options.options)
    except ValueError as err:
        raise TrainingError(f"--options must be a JSON object: {err}") from err
    if not isinstance(more, dict):
        raise TrainingError(f"--options must be a JSON object, not {options.options}")
    judge: RewardModel = kinds[options.judge].load()("teacher", options.model, more)
    return judge


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reward_models.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    usual, shape = RunOptions(), Shape()

    ask = commands.add_parser("annotate", help="ask a judge for the rewards of answers")
    ask.set_defaults(run=_annotate)
    ask.add_argument("answers", type=Path, help="JSON lines: conv_id, split, messages, token_ids")
    ask.add_argument("texts", type=Path, help="where to write texts with rewards; is gone on with")
    ask.add_argument("--judge", required=True, help="kind of the teacher, outcome for example")
    ask.add_argument("--model", default="", help="the teacher's directory or id")
    ask.add_argument("--options", default="{}", help="the teacher's options, a JSON object")
    ask.add_argument("--max-tokens", type=int, default=128, help="texts are cut to (128)")
    ask.add_argument("--candidates", type=int, default=512, help="judged at a time (512)")

    train = commands.add_parser("train", help="train on texts with rewards")
    train.set_defaults(run=_train)
    train.add_argument("texts", type=Path, help="what annotate wrote")
    train.add_argument("out", type=Path, help="the model's directory")
    train.add_argument("--work", type=Path, required=True, help="folder of state and metrics")
    train.add_argument("--teacher", default="Not said.", help="who judged, for the card")
    train.add_argument("--rank", type=int, default=shape.rank)
    train.add_argument("--alpha", type=float, default=shape.alpha)
    train.add_argument("--targets", nargs="+", default=shape.targets, metavar="LAYER")
    train.add_argument("--lr", type=float, default=usual.lr)
    train.add_argument("--bias-lr", type=float, help="of the bias (as --lr)")
    train.add_argument("--batch", type=int, default=usual.texts_per_batch, help="texts in a step")
    train.add_argument("--epochs", type=int, default=usual.epochs)
    train.add_argument("--decay-share", type=float, default=usual.decay_share)
    train.add_argument("--max-grad-norm", type=float)
    train.add_argument("--seed", type=int, default=usual.seed)
    train.add_argument("--save-every", type=int, default=usual.save_every, help="steps")
    train.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    for command in (ask, train):
        command.add_argument("--base", type=Path, required=True, help="the base's directory")
        command.add_argument(
            "--prefill",
            choices=("hidden", "shown"),
            default="hidden",
            help="whether the beginning of an answer that a caller wrote is read (hidden)",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
