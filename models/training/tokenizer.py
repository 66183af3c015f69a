"""The saplings' tokenizer: byte-level BPE with single digits and a newline that never merges.

Every byte is a token, so any UTF-8 text is encoded and comes back unchanged. Words of the tasks
are single tokens; a step, which ends at a newline, therefore ends exactly at one token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.tasks import countdown, sums
from models.tasks.base import solution_of

VOCAB_SIZE = 640
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (PAD, BEGIN, END, *(f"<|{role}|>" for role in ROLES))

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- if not (loop.last and continue_final_message is defined and continue_final_message) -%}"
    "{{ eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

# Everyday words, so that a system prompt or a stray question does not fall apart into bytes.
EVERYDAY = (
    "You are a careful assistant. Think step by step and answer with one number. "
    "Please solve this problem. Write one step per line, then the answer. Hello, what is the "
    "name of this and that? I do not know. It was with the other one, and they were not there."
)


def train_tokenizer(
    seed: int, corpus: Iterable[str] | None = None, more_special: tuple[str, ...] = ()
) -> Tokenizer:
    """Learn the merges from drawn problems and solutions; the same seed, the same file.

    Args:
        seed: Of the drawn problems.
        corpus: Texts to learn from instead.
        more_special: Special tokens beside `SPECIAL`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = (*SPECIAL, *more_special)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(seed) if corpus is None else corpus, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_tokens: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer:{seed}")
    for index in range(4000):
        problem = sums.draw(rng, sums.BROAD)
        yield problem.text
        yield solution_of(problem)
        if index % 20 == 0:
            yield countdown.draw(rng).text
            yield EVERYDAY
