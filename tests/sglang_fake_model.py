"""What the fake of SGLang computes: a tokenizer, a distribution, draws, and a true token trie."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS = 0
VOCAB_SIZE = len(SPECIAL) + 256 + 4
"""Specials, bytes, and a few rows that no token uses."""

BLOCK, MASK = 4, 151669
"""Of SDAR: what SGLang has in code."""

Row = npt.NDArray[np.float64]


def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: at for at, text in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.add_special_tokens(SPECIAL)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def write_fake_model(directory: Path, *, architecture: str = "LlamaForCausalLM") -> Path:
    """A model directory without weights; one of SDAR counts its mask among its vocabulary."""
    tokenizer().save(str(directory / "tokenizer.json"))
    named = {"eos_token": SPECIAL[EOS], "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    size = MASK + 1 if architecture.startswith("SDAR") else VOCAB_SIZE
    config = {
        "model_type": "llama",
        "architectures": [architecture],
        "vocab_size": size,
        "eos_token_id": EOS,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@lru_cache(maxsize=4096)
def logits_after(tail: tuple[int, ...]) -> Row:
    """Logits, (vocab,), after a sequence that ends in `tail`; the same for the same tail."""
    digest = hashlib.blake2b(repr(tail).encode(), digest_size=8).digest()
    drawn = np.random.default_rng(int.from_bytes(digest, "big")).normal(0, 2, VOCAB_SIZE)
    drawn[len(SPECIAL) + 256 :] = -60.0
    drawn.flags.writeable = False
    return drawn


def log_softmax(logits: Row) -> Row:
    shifted = logits - logits.max()
    row: Row = shifted - np.log(np.exp(shifted).sum())
    return row


def logps_after(ids: Sequence[int]) -> Row:
    """The model's own next-token log-probabilities."""
    return log_softmax(logits_after(tuple(ids[-3:])))


@dataclass(frozen=True)
class Drawn:
    """A token, and the row of log-probabilities that the server reports for it."""

    token: int
    reported: Row


def draw(
    ids: Sequence[int],
    output: Sequence[int],
    params: Mapping[str, Any],
    stop_ids: frozenset[int],
    uniform: float,
    *,
    is_raw: bool,
    decode: Any,
) -> Drawn:
    """One token as SGLang draws it: bias and penalties over this request's output alone."""
    logits = logits_after(tuple(ids[-3:])).copy()
    for token, count in Counter(output).items():
        logits[token] -= params["frequency_penalty"] * count + params["presence_penalty"]
    if len(output) < params["min_new_tokens"]:
        logits[sorted(stop_ids)] = -np.inf
    if params["regex"]:
        logits[_barred(params["regex"], output, decode)] = -np.inf
    for token, bias in (params["logit_bias"] or {}).items():
        logits[int(token)] += bias
    is_greedy = params["temperature"] < 1e-6 or params["top_k"] == 1
    raw = log_softmax(logits)
    scaled = raw if is_greedy else log_softmax(logits / params["temperature"])
    reported = raw if is_raw else scaled
    if is_greedy:
        return Drawn(int(np.argmax(logits)), reported)
    order = np.argsort(-scaled, kind="stable")
    probs = np.exp(scaled[order])
    keep = probs >= params["min_p"] * probs[0]
    if params["top_k"] > 0:
        keep[params["top_k"] :] = False
    keep &= np.cumsum(probs) - probs < params["top_p"]
    edges = np.cumsum(np.where(keep, probs, 0.0))
    at = int(np.searchsorted(edges, uniform * edges[-1], side="right"))
    return Drawn(int(order[min(at, int(np.flatnonzero(keep)[-1]))]), reported)


def _barred(pattern: str, output: Sequence[int], decode: Any) -> list[int]:
    """Ids after which the text could no longer match; the end is barred until it does."""
    compiled = regex.compile(pattern)
    text = decode(output)
    barred = [] if compiled.fullmatch(text) else [EOS]
    for token in range(1, VOCAB_SIZE):
        piece = decode([token])
        if not piece or not compiled.fullmatch(text + piece, partial=True):
            barred.append(token)
    return barred


def uniform_of(seed: int, position: int) -> float:
    digest = hashlib.blake2b(repr((seed, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def listed(row: Row, ids: Sequence[int]) -> list[list[Any]]:
    return [[_finite(row[token]), int(token), None] for token in ids]


def top(row: Row, size: int) -> list[list[Any]]:
    return listed(row, [int(at) for at in np.argsort(-row, kind="stable")[:size]])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class TokenTrie:
    """Every computed token, by path; nothing is evicted."""

    root: dict[int, Any] = field(default_factory=dict)

    def match(self, ids: Sequence[int]) -> int:
        """How many leading tokens are there."""
        node, found = self.root, 0
        for token in ids:
            if token not in node:
                return found
            node, found = node[token], found + 1
        return found

    def insert(self, ids: Sequence[int]) -> None:
        node = self.root
        for token in ids:
            node = node.setdefault(token, {})
