"""Writes what is known of a sapling beside its weights: ``bough.json`` and ``CARD.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.evaluate import Measured

GENERATOR_ABOUT: dict[str, Any] = {
    "id": "sapling-sums",
    "kind": "generator",
    "place": 0,
    "task": "sums",
    "reward_model": "sapling-prm",
    "step_delimiters": ["\n"],
    "max_step_tokens": 48,
    "answer": "The answer is",
}

DECODER = "decoder"
"""The folder of the reward model's decoder inside its own."""

PROCESS_ABOUT: dict[str, Any] = {
    "id": "sapling-prm",
    "kind": "process",
    "task": "sums",
    "base": DECODER,
    "step_delimiters": ["\n"],
    "reading": {
        "hidden": "final_norm",
        "position": "last_token_of_step",
        "likelihood": "sum_of_answer_token_logps_up_to_position",
        "activation": "sigmoid",
        "end_of_turn": "not_part_of_a_step",
    },
    "low": 0.0,
    "high": 1.0,
}

_GENERATOR_CARD = """# sapling-sums

A Llama of {parameters:,} parameters (4 layers, 192 wide, 6 heads, tied embeddings) that solves
word problems in several steps, one line each, and closes with `The answer is N.` It can do
nothing else.

- **Data.** Drawn by `models/tasks/sums.py`, train split only (blake2b of the text mod 10 in 0-7),
  never repeated. {data}
- **Training.** `python -m models.training`: {training}
- **Hardware.** {hardware}; generator {generator_minutes:.0f} minutes.
- **Precision.** Trained with bfloat16 products; the weights are rounded to bfloat16 and measured
  so, in float32 arithmetic.
- **Vocabulary.** Byte-level BPE, {vocab_size} tokens, single digits, every byte a token, the
  newline never merged. Prompts have about {prompt_tokens:.0f} tokens, solutions
  {solution_tokens:.0f}.

## Quality

Released distribution (`python -m models.tasks sums --split test --seed {seed}`), 95 % intervals.

| figure | value | interval | n |
|---|---|---|---|
{table}

Answers are wrong through slips in carries and products, through a wrong amount taken over, and
through a distractor; a second sample often is right. Use it to test search, not to do sums.
"""

_PROCESS_CARD = """# sapling-prm

A process reward model for `sapling-sums`: for each step, the probability that the answer still
ends right. The generator, trained further, with a linear head.

- **Reading.** Render the chat with the decoder's template and generation prompt, append the
  answer's tokens. At the last token of a step take the final-norm hidden state `h`, and the
  sum `L` of the decoder's log-probabilities (nats, temperature 1) of every answer token so
  far, the step's last token included. The reward is
  `sigmoid(weight @ h + bias + likelihood * L)`. A step's last token is its newline; the closing
  line's is the full stop, with no newline and no end-of-turn token after it.
- **Decoder.** `decoder/`, in the generator's layout: the generator trained further on reference
  solutions, so that its likelihood knows more than the policy it judges.
- **Data of the head.** The generator's own temperature-1 completions of train-split problems:
  {data}
  The target of a prefix is the share of completions through this very prefix that ended right.
- **Training.** `python -m models.training`: {training}
- **Hardware.** {hardware}; decoder {judge_minutes:.0f}, rollouts {rollout_minutes:.0f}, head
  {process_minutes:.0f} minutes.
- **Files.** `head.safetensors` with `weight` (1, 192), `bias` (1) and `likelihood` (1), bfloat16.
- **Rejected.** An adapter of rank 32 on all linear layers, read from the hidden state alone: step
  AUROC 0.72 after 400 steps. Four layers that need all four to expect a token have none left to
  compare it with what came, which the log-probability does. The adapter with the likelihood, on
  completions without their multiplicity: 0.83, against 0.90 for the generator's own likelihood.
  All weights trained through the likelihood on 8,654 completions: they were learnt by heart.
  The generator itself as decoder: `ets` at 820 tokens answered 0.585 of 200 validation problems,
  with this decoder 0.715; `self_consistency` 0.560.
- **Limits.** It is no larger than the generator: see `best` and `majority` below.

## Quality

Test split, seed {seed}, temperature-1 answers of the generator, 95 % intervals.

| figure | value | interval | n |
|---|---|---|---|
{table}

`prm_auroc`: area under the ROC curve of step rewards; a step is positive when the exact step
verifier finds the answer right up to and including it. `prm_auroc_mc`: positive when at least
half of 8 fresh completions from the step end right. `majority`, `weighted` and `best` pick among
16 answers: by count, by count weighted with the last reward, and by the highest last reward.
"""


@dataclass(frozen=True)
class Facts:
    """What the cards say that is not a figure; the names are those in the templates."""

    values: Mapping[str, Any]
    figures: Mapping[str, Measured]


def write_generator(directory: Path, facts: Facts) -> None:
    """``bough.json`` and ``CARD.md`` of the generator."""
    write_about(directory, GENERATOR_ABOUT)
    write_card(directory, _GENERATOR_CARD, facts)


def write_process(directory: Path, facts: Facts) -> None:
    """``bough.json`` and ``CARD.md`` of the process reward model."""
    write_about(directory, PROCESS_ABOUT)
    write_card(directory, _PROCESS_CARD, facts)


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """``bough.json``: what a server has to know of the model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bough.json").write_text(json.dumps(about, indent=2) + "\n")


def write_card(directory: Path, template: str, facts: Facts) -> None:
    """``CARD.md``: a template with ``{table}`` and the names of the facts."""
    rows = [
        f"| {name} | {figure.value:.3f} | {figure.low:.3f} to {figure.high:.3f} | {figure.n} |"
        for name, figure in facts.figures.items()
    ]
    text = template.format(table="\n".join(rows), **facts.values)
    (directory / "CARD.md").write_text(text)
