"""What the echo engine computes: its tokens, its distribution and the draws from it.

Pure functions of token ids; nothing here knows claims, children or text that must stop.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.base import NextTokens, Sampling, TokenIds

EOS: Final = 256
MARKERS: Final = {"system": 257, "user": 258, "assistant": 259, "tool": 260}
VOCAB_SIZE: Final = 261
BYTES: Final = tuple(bytes([b]) for b in range(256)) + (b"",) * (VOCAB_SIZE - 256)

Logits: TypeAlias = npt.NDArray[np.float64]


def echo_logits(ids: TokenIds, margin: float) -> Logits:
    """Next-token logits after `ids`, (vocab,): the echoed token stands out by `margin` nats."""
    logits = np.full(VOCAB_SIZE, -margin)
    message, position = _script(ids)
    if position < len(message):
        logits[message[position]] = 0.0
    else:
        if message:
            logits[message[position % len(message)]] = -margin / 2
        logits[EOS] = 0.0
    return logits


def _script(ids: TokenIds) -> tuple[TokenIds, int]:
    """The last user message before the open answer, and the position in that answer."""
    start = _last(ids, MARKERS["assistant"], len(ids))
    if start is None:
        return (), 0
    position = len(ids) - start - 1
    user = _last(ids, MARKERS["user"], start)
    if user is None:
        return (), position
    end = next((at for at in range(user, start) if ids[at] == EOS), start)
    return ids[user + 1 : end], position


def _last(ids: TokenIds, token: int, end: int) -> int | None:
    return next((at for at in range(end - 1, -1, -1) if ids[at] == token), None)


def bytes_of(ids: Sequence[int]) -> bytes:
    """The bytes of tokens; markers and eos have none."""
    return b"".join(BYTES[token] for token in ids)


def child_seeds(seed: int | None, n: int) -> list[int]:
    """One seed per child: the first has `seed` itself; None draws one."""
    first = secrets.randbits(63) if seed is None else seed
    return [first, *(_hash(first, index) for index in range(1, n))]


def _hash(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniform_of(seed: int, position: int) -> float:
    """In [0, 1): keyed by branch and position, never by how often was drawn."""
    return (_hash(seed, position, 0) >> 11) / 2.0**53


def log_softmax(logits: Logits) -> Logits:
    """Log-probabilities in nats."""
    shifted = logits - logits.max()
    out: Logits = shifted - np.log(np.exp(shifted).sum())
    return out


def shaped(
    logits: Logits, how: Sampling, ids: TokenIds, response_start: int, barred: frozenset[int]
) -> Logits:
    """Logits after penalties, bias and bans."""
    out = logits.copy()
    if how.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(ids, dtype=int))
        factor = np.where(out[seen] > 0, 1 / how.repetition_penalty, how.repetition_penalty)
        out[seen] *= factor
    if how.presence_penalty or how.frequency_penalty:
        counts = np.bincount(np.asarray(ids[response_start:], dtype=int), minlength=VOCAB_SIZE)
        out -= how.presence_penalty * (counts > 0) + how.frequency_penalty * counts
    for token, bias in how.logit_bias.items():
        if 0 <= token < VOCAB_SIZE:
            out[token] += bias
    out[[token for token in barred if 0 <= token < VOCAB_SIZE]] = -np.inf
    return out


def draw(logits: Logits, how: Sampling, uniform: float) -> int:
    """One token by inverse transform over tokens sorted by probability, ties by id."""
    if how.temperature == 0:
        return int(np.argmax(logits))
    probs = np.exp(log_softmax(logits / how.temperature))
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order]
    keep = ranked >= how.min_p * ranked[0]
    if how.top_k > 0:
        keep[how.top_k :] = False
    if how.top_p < 1.0:
        keep &= np.cumsum(ranked) - ranked < how.top_p
    ranked = np.where(keep, ranked, 0.0)
    edges = np.cumsum(ranked)
    at = int(np.searchsorted(edges, uniform * edges[-1], side="right"))
    return int(order[min(at, int(np.flatnonzero(ranked)[-1]))])


def listed(
    logps: Logits, ids: Sequence[int] | None, mass: float | None, top_k: int | None
) -> NextTokens:
    """The tokens asked for, and the probability of all others."""
    if ids is not None:
        chosen = np.asarray(ids, dtype=int)
    else:
        order = np.argsort(-logps, kind="stable")
        if mass is not None:
            probs = np.exp(logps[order])
            chosen = order[: max(1, int((np.cumsum(probs) - probs < mass).sum()))]
        else:
            chosen = order[: top_k or 0]
    rest = np.ones(VOCAB_SIZE, dtype=bool)
    rest[chosen] = False
    return NextTokens(
        ids=tuple(int(token) for token in chosen),
        logps=tuple(float(value) for value in logps[chosen]),
        tail_mass=float(np.exp(logps[rest]).sum()),
    )
