"""Measures the masked-diffusion sapling as it is served, and writes its card.

Questions are from the test split. `short` is the judge of that kind: 1 for a right answer, else the
share of it that holds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from engines.base import Continuation, Sampling
from engines.diffusion.engine import DiffusionEngine, open_engine
from models.evaluate import Measured, share
from models.short_judge import worth
from models.tasks import task_named
from models.training.batches import Chat
from models.training.cards import write_about
from models.training.diffusion import STAGES, canvases, masked_loss
from models.training.masked import load_masked
from models.training.measure import load_chat

ABOUT: Final[dict[str, Any]] = {
    "id": "sapling-diffusion",
    "kind": "diffusion",
    "place": 30,
    "task": "totals",
    "reward_model": "short",
    "engine": {"kernel": "low_confidence", "length": 32},
}

_CARD: Final = """# sapling-diffusion

A masked-diffusion language model of {parameters:,} parameters (LLaDA's layout: 5 layers, 128 wide,
4 heads, every token sees the whole row) that writes short sums and short tales on a canvas of 32
tokens. It can do nothing else, and these not well: it is there to be searched.

- **Data.** Drawn by `models/tasks/totals.py` and `models/tasks/tales.py`, train split only
  (blake2b of the question mod 10 in 0-7), never repeated; {tales_share:.0%} tales. Until the last
  stage amounts went up to 99, in it and in what is asked they go up to 9.
- **Training.** `python -m models.training --parts diffusion`: {training}. AdamW, {rows} rows a
  step, learning rate to {peak_lr:g}; only the answer is masked, a row's loss is weighted by one
  over its masked share.
- **Hardware.** {hardware}.
- **Precision.** Trained with bfloat16 products; the weights are rounded to bfloat16 and measured
  so, in float32 arithmetic.
- **Vocabulary.** Byte-level BPE, {vocab_size} tokens, single digits, every byte a token, and
  `<|mask|>`.
- **Served** with the kernel `low_confidence`, 32 steps, temperature 1 unless a request says
  otherwise; judged by `short`.

## Quality

Test split, seed {seed}, 95 % intervals; {samples} samples per question. `right` is by the tasks'
exact verifiers, `worth` the mean of the judge `short`, `best` what the best of a question's samples
is worth, `nfe` evaluations per text, and `loss` the bound on the negative log-likelihood of the
canvas, in nats per token, over {num_rows} rows.

| figure | value | interval | n |
|---|---|---|---|
{table}
"""


async def measure(
    engine: DiffusionEngine, task: str, n: int, samples: int, seed: int
) -> dict[str, Measured]:
    """Figures of one task."""
    asked = task_named(task)
    problems = [asked.problem("test", seed, index) for index in range(n)]

    async def texts_of(index: int) -> list[Continuation]:
        prompt = engine.render(asked.messages(problems[index]))
        prefix = await engine.open(prompt)
        how = Sampling(max_tokens=32, seed=seed * 1_000_003 + index, deltas=False)
        drawn = [item async for item in engine.sample(prefix, how, n=samples)]
        return [item for item in drawn if isinstance(item, Continuation)]

    drawn = await asyncio.gather(*(texts_of(index) for index in range(n)))
    worths = [
        [worth(problem.text, one.text) for one in texts]
        for problem, texts in zip(problems, drawn, strict=True)
    ]
    right = [sum(value == 1.0 for value in values) / samples for values in worths]
    return {
        f"{task}: right": _mean(right, seed),
        f"{task}: right, best of {samples}": share(sum(max(v) == 1.0 for v in worths), n),
        f"{task}: worth": _mean([sum(values) / len(values) for values in worths], seed),
        f"{task}: worth, best of {samples}": _mean([max(values) for values in worths], seed),
        f"{task}: nfe": _mean([float(one.nfe) for texts in drawn for one in texts], seed),
    }


def held_out_loss(directory: Path, chat: Chat, num_batches: int, seed: int) -> Measured:
    """The bound on the test split, per token of the canvas, over batches."""
    network = load_masked(directory)
    torch.manual_seed(seed)
    batches = canvases(chat, STAGES[-1], split="test")
    with torch.inference_mode():
        losses = [
            float(masked_loss(network, *next(batches), network.shape.mask_token_id))
            for _ in range(num_batches)
        ]
    return _mean(losses, seed)


def write_card(
    directory: Path, hardware: str, *, n: int = 40, samples: int = 16, seed: int = 7
) -> dict[str, Measured]:
    """``bough.json`` and ``CARD.md``; returns what was measured."""
    write_about(directory, ABOUT)
    chat = load_chat(directory)

    async def measured() -> dict[str, Measured]:
        engine = open_engine("sapling-diffusion", str(directory), {})
        try:
            of_totals = await measure(engine, "totals", n, samples, seed)
            return of_totals | await measure(engine, "tales", n, samples, seed)
        finally:
            await engine.aclose()

    figures = asyncio.run(measured())
    figures["loss"] = held_out_loss(directory, chat, 16, seed)
    network = load_masked(directory)
    text = _CARD.format(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        vocab_size=network.shape.vocab_size,
        training="; ".join(
            f"stage {stage.name}, seed {stage.seed}, {stage.steps} steps" for stage in STAGES
        ),
        tales_share=STAGES[0].tales_share,
        rows=STAGES[0].rows,
        peak_lr=STAGES[0].peak_lr,
        hardware=hardware,
        seed=seed,
        samples=samples,
        num_rows=16 * STAGES[0].rows,
        table="\n".join(
            f"| {name} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f} | {one.n} |"
            for name, one in figures.items()
        ),
    )
    (directory / "CARD.md").write_text(text)
    return figures


def _mean(values: Sequence[float], seed: int) -> Measured:
    """A mean with its bootstrap interval, 1000 resamples."""
    rng = random.Random(f"card:{seed}")
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(1000))
    return Measured(sum(values) / len(values), len(values), means[25], means[974])
