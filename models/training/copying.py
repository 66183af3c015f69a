"""Weights to begin with that copy: what followed a token, or two tokens, follows it again.

A small network finds copying by itself only after some thousand steps, and the guarding task is
nothing without it: code word and facts stand in the system prompt. So two heads of the first layer
start as looks at the token before and at the one before that, and the heads of the second layer as
copies of what follows the same token or the same two. Training goes on from there with all weights.

Source: the circuit of Olsson et al., "In-context Learning and Induction Heads", arXiv 2209.11895;
that it may be put in by hand is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.training.network import Attention, Llama

_NEAR = 4
"""Fast rotations that tell neighbours apart."""
_SHARPNESS = 16.0
_MATCH = 16.0
"""Attention logit, roughly, of a token that stood there before."""
_COPY = 0.25
_LOOK = 0.08
"""What is written into the residual stream, roughly, in an entry."""
_COMMON = 3.0
"""The entry that all embeddings share, in deviations of the others; position is read through it."""


@dataclass(frozen=True)
class _Parts:
    """Entries of the residual stream: content, the token before, the one before that."""

    content: slice
    before: slice
    second: slice


@torch.no_grad()
def start_copying(network: Llama) -> None:
    """Write the heads into a network as it was initialised.

    Raises:
        ValueError: The network is too small for it.
    """
    shape = network.shape
    size, head = shape.hidden_size, shape.head_dim
    num_content = size - 2 * head - 1
    if shape.num_hidden_layers < 2 or num_content < head:
        raise ValueError("copying needs two layers and four heads at least")
    parts = _Parts(
        slice(0, num_content),
        slice(num_content, num_content + head),
        slice(num_content + head, num_content + 2 * head),
    )
    embedding = network.model.embed_tokens.weight
    std = float(embedding[:, parts.content].std())
    embedding[:, parts.before], embedding[:, parts.second] = 0.0, 0.0
    embedding[:, -1] = _COMMON * std
    basis, _ = torch.linalg.qr(torch.randn(num_content, num_content))
    shown = basis[:head]  # what a look tells of a token (head, content)
    first, second = (layer.self_attn for layer in network.model.blocks()[:2])
    entry = 1 / math.sqrt((num_content + _COMMON**2) / size)  # of normalised content
    for place, (back, part) in enumerate(((1, parts.before), (2, parts.second))):
        _look_back(first, place, back, _COMMON * entry, shape.rope_theta)
        _move(first, place, (shown, parts.content), (torch.eye(head), part), _LOOK / entry)
    entry = 1 / math.sqrt((num_content + 2 * head + _COMMON**2) / size)
    half = head // 2
    for place in range(shape.num_attention_heads):
        seen = slice(0, half) if place % 2 == 0 else slice(half, head)
        query: tuple[Tensor, slice] = (shown[seen], parts.content)
        key: tuple[Tensor, slice] = (torch.eye(head)[seen], parts.before)
        if place >= 2:
            query, key = key, (torch.eye(head)[seen], parts.second)
        _match(second, place, query, key, entry)
        rows = basis[:head] if place % 2 == 0 else basis[-head:]
        _move(second, place, (rows, parts.content), (rows.T, parts.content), _COPY / entry)


def _look_back(at: Attention, place: int, back: int, common: float, theta: float) -> None:
    """A head whose logit depends on the distance only, and is largest at ``back``."""
    rows, half = _rows(at, place), at.head_dim // 2
    size = math.sqrt(_SHARPNESS * math.sqrt(at.head_dim)) / common
    for weight in (at.q_proj.weight, at.k_proj.weight):
        weight[rows] = 0.0
    for index in range(_NEAR):
        angle = back * theta ** (-index / half)
        at.k_proj.weight[rows.start + index, -1] = size
        at.q_proj.weight[rows.start + index, -1] = size * math.cos(angle)
        at.q_proj.weight[rows.start + index + half, -1] = -size * math.sin(angle)


def _match(
    at: Attention, place: int, query: tuple[Tensor, slice], key: tuple[Tensor, slice], entry: float
) -> None:
    """A head that looks where the key's part says what the query's part does.

    Only slow rotations are used, which are nearly the same at all distances.
    """
    rows, quarter = _rows(at, place), at.head_dim // 4
    slow = [*range(quarter, 2 * quarter), *range(3 * quarter, 4 * quarter)]
    size = math.sqrt(_MATCH * math.sqrt(at.head_dim) / len(slow)) / entry
    for weight, (seen, part) in ((at.q_proj.weight, query), (at.k_proj.weight, key)):
        weight[rows] = 0.0
        for place_in_head, row in zip(slow, seen, strict=True):
            weight[rows.start + place_in_head, part] = size * row


def _move(
    at: Attention,
    place: int,
    source: tuple[Tensor, slice],
    target: tuple[Tensor, slice],
    size: float,
) -> None:
    """A head that carries a part of what it looks at into a part of where it stands."""
    rows = _rows(at, place)
    (read, part), (written, into) = source, target
    at.v_proj.weight[rows] = 0.0
    at.v_proj.weight[rows, part] = read
    at.o_proj.weight[:, rows] = 0.0
    at.o_proj.weight[into, rows] = size * written


def _rows(at: Attention, place: int) -> slice:
    return slice(place * at.head_dim, (place + 1) * at.head_dim)
