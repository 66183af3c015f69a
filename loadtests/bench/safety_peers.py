"""Token-level search by next-token rewards on Hugging Face models: what ours is measured against.

Both peers walk through the same search and differ in where logits come from: `CloneTrie` keeps keys
and values by the token, as the published code does, and `Recompute` keeps nothing. Neither takes
anything from our strategy or engine, so equal tokens are evidence. The end of an answer is never
allowed: all searches have the same number of steps. B sequences, T tokens, V vocabulary, H heads,
D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from engines.base import TokenIds
from engines.embedded.weights import Tensors
from reward_models.base import UNSEEN

_DECIMALS: Final = 5
_SLACK: Final = 1e-5  # of a mass: what float32 loses is no reason to list more
_MOST: Final = 0.99  # where what is not allowed holds more than this, all tokens are listed


class NextLogits(Protocol):
    """Where a search gets the logits of next tokens from."""

    def __call__(self, sequences: Sequence[TokenIds]) -> Tensor:
        """Logits after each sequence, (B, V) float32."""


@dataclass(frozen=True)
class Knobs:
    """Of a search: answers kept, mass of the nucleus, tokens of an answer, tokens not allowed."""

    width: int
    top_p: float
    new_tokens: int
    banned: frozenset[int]


@dataclass(frozen=True)
class RewardBias:
    """What turns the reward model's logits into rewards: (V,) float32 bias, (V,) bool unseen."""

    bias: Tensor
    unseen: Tensor


def load_peer(directory: Path, tensors: Tensors | None = None) -> Any:
    """A Hugging Face model in float32; `tensors` in place of its own weights where given."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if tensors is not None:
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        found = model.load_state_dict(
            {name: one.float() for name, one in tensors.items()}, strict=False
        )
        if set(found.missing_keys) - tied or found.unexpected_keys:
            raise ValueError(f"{directory}: {found} does not fit")
    model.requires_grad_(False)
    return model.eval()


@torch.inference_mode()
def search(
    prompt: TokenIds,
    reward_prompt: TokenIds,
    policy: NextLogits,
    rewards: NextLogits,
    head: RewardBias,
    knobs: Knobs,
) -> TokenIds:
    """The best answer's tokens, by the loop of the paper.

    Source: Saffron-1, Qiu et al., arXiv 2506.06444, equations 2, 3 and 7.
    Differs: from the published code, as ours: an answer keeps the reward of its last token, and
    ties go to place and token id. Rewards are rounded to 1e-5, as everything that is ranked here.
    """
    beam: list[TokenIds] = [()]
    is_banned = torch.zeros_like(head.unseen)
    is_banned[sorted(knobs.banned)] = True
    for _ in range(knobs.new_tokens):
        logits = policy([prompt + answer for answer in beam])  # (B, V)
        values = rewards([reward_prompt + answer for answer in beam]) + head.bias  # (B, V)
        values = values.masked_fill(head.unseen, UNSEEN)
        choices = []
        for place, ids in enumerate(nuclei(logits.softmax(-1), knobs.top_p, is_banned)):
            worth = values[place][ids].double()
            allowed = worth > UNSEEN
            if not bool(allowed.any()):  # all of it forbidden: the likeliest, behind the others
                allowed[0] = True
            pairs = zip(worth[allowed].tolist(), ids[allowed].tolist(), strict=True)
            choices += [(-round(value, _DECIMALS), place, token) for value, token in pairs]
        choices.sort()
        beam = [(*beam[place], token) for _, place, token in choices[: knobs.width]]
    return beam[0]


def nuclei(shares: Tensor, top_p: float, is_banned: Tensor) -> list[Tensor]:
    """Of each row the tokens that hold `top_p` of what is allowed, likeliest first.

    Tokens are listed until they hold `top_p`, and further where that takes more because some of
    them are banned. The mass of those is the others'; what is banned and not listed counts as
    nothing, as with ours.

    Args:
        shares: (B, V) probabilities.
        top_p: In 0..1.
        is_banned: (V,) bool.
    """
    order = shares.sort(dim=-1, descending=True, stable=True)
    values, is_out = order.values.double(), is_banned[order.indices]
    before = values.cumsum(-1) - values
    allowed = values.masked_fill(is_out, 0.0)
    mass = values.new_full((len(shares), 1), top_p)
    while True:
        is_listed = before < mass
        taken = (values * (is_listed & is_out)).sum(-1, keepdim=True)
        is_most = taken > _MOST
        rest = torch.where(is_most, allowed.sum(-1, keepdim=True), 1.0 - taken)
        held = (allowed * is_listed).sum(-1, keepdim=True)
        is_short = is_most | (held < (top_p - _SLACK) * rest)
        is_short &= ~is_listed.all(-1, keepdim=True)
        if not bool(is_short.any()):
            break
        more = torch.where(is_most, math.inf, top_p + taken * (1.0 - top_p))
        mass = torch.where(is_short, more, mass)
    is_in = is_listed & ~is_out & (allowed.cumsum(-1) - allowed < top_p * rest)
    return [ids[one] for ids, one in zip(order.indices, is_in, strict=True)]


class Recompute:
    """Every sequence from its first token at every step, one batch, no cache.

    Args:
        model: A Hugging Face model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, sequences: Sequence[TokenIds]) -> Tensor:
        """See `NextLogits`; all sequences are of one length."""
        out = self._model(torch.tensor(list(sequences)), use_cache=False, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1].float()
        return logits


class _Node:
    """A prefix: its last token's keys and values by layer, (1, H, 1, D) each, and its logits."""

    def __init__(self, keys_values: list[tuple[Tensor, Tensor]], logits: Tensor) -> None:
        self.keys_values = keys_values
        self.logits = logits
        self.children: dict[int, _Node] = {}


class CloneTrie:
    """A trie keyed by token id, a clone of keys, values and logits in every node.

    A call takes whole sequences and walks them a token at a time. The nodes of a level that are
    missing are computed in batches: their own tokens go in, and what is in front of them is put
    together from the slices on each path. All are cleared with the prompt.

    Source: the published code of Saffron-1 (`AutoCache`, `CacheNode`), from its description:
    section 4.4 of the paper. The batch of 4 is its default.
    Differs: nothing is padded, since the sequences of a level are equally long.

    Args:
        model: A Hugging Face model.
        batch: Sequences in a forward pass.
    """

    def __init__(self, model: Any, batch: int = 4) -> None:
        self._model = model
        self._batch = batch
        self._root = _Node([], torch.empty(0))

    def __call__(self, sequences: Sequence[TokenIds]) -> Tensor:
        """See `NextLogits`; all sequences are of one length."""
        paths = [[self._root] for _ in sequences]
        for level in range(len(sequences[0])):
            missing: dict[tuple[int, int], tuple[list[_Node], int]] = {}
            for path, tokens in zip(paths, sequences, strict=True):
                if tokens[level] not in path[-1].children:
                    missing[id(path[-1]), tokens[level]] = (path[1:], tokens[level])
            self._compute(list(missing.values()))
            for path, tokens in zip(paths, sequences, strict=True):
                path.append(path[-1].children[tokens[level]])
        return torch.stack([path[-1].logits for path in paths])

    def _compute(self, missing: list[tuple[list[_Node], int]]) -> None:
        """Make the nodes of some tokens, each behind a path without the root."""
        for start in range(0, len(missing), self._batch):
            batch = missing[start : start + self._batch]
            cache = self._cache([path for path, _ in batch])
            tokens = torch.tensor([[token] for _, token in batch])  # (B, 1)
            out = self._model(tokens, past_key_values=cache, use_cache=True)
            for row, (path, token) in enumerate(batch):
                slices = [
                    (
                        layer.keys[row : row + 1, :, -1:].clone(),
                        layer.values[row : row + 1, :, -1:].clone(),
                    )
                    for layer in cache.layers
                ]
                parent = path[-1] if path else self._root
                parent.children[token] = _Node(slices, out.logits[row, -1].float().clone())

    def _cache(self, paths: list[list[_Node]]) -> Any:
        """All slices of each path one behind the other, and the paths side by side."""
        if not paths[0]:
            return DynamicCache(config=self._model.config)
        layers = range(self._model.config.num_hidden_layers)

        def together(layer: int, part: int) -> Tensor:
            rows = [
                torch.cat([node.keys_values[layer][part] for node in path], 2) for path in paths
            ]
            return torch.cat(rows)  # (B, H, T, D)

        return DynamicCache([(together(layer, 0), together(layer, 1)) for layer in layers])
