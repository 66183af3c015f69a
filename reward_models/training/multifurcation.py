"""Partial supervision: a decoder learns what the token that came next was worth.

With ``M(s)`` the decoder's next-token logits plus a bias, and ``R`` an outcome reward, the loss of
a text ``s`` at position ``j`` is

    (M(s[0:j))[s_j] - R(s[0:j+1)))²

Only the entry of the token that came next is supervised, so only that entry is computed: the
output head's row of that token times the hidden state in front of it. Every beginning of a text is
used, all in one causal forward. Trained are low-rank adapters and the bias; the output head, which
is the embedding where the two are tied, takes no gradient.

Source: Saffron-1, Qiu et al., arXiv 2506.06444, section 4.2, equation 5.
Differs: whole texts in a batch instead of shuffled beginnings, one forward for all of them; the
bias is trained, as the paper says and the published weights do not show, and starts at zero.

Letters in shape comments: B texts, T tokens, C hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.training.errors import TrainingError
from reward_models.training.low_rank import attach
from reward_models.training.token_rewards import TokenRewards


@dataclass(frozen=True)
class Shape:
    """What is trained of a decoder; the defaults are those of the published weights."""

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right: ids (B, T), rewards (B, T) with NaN where there is none."""

    ids: Tensor
    rewards: Tensor

    @property
    def num_rewards(self) -> int:
        """Tokens that are learned from."""
        return int((~self.rewards.isnan()).sum())


class Multifurcation(nn.Module):
    """A frozen decoder, its adapters, and the bias of its output head.

    Args:
        decoder: A causal language model of transformers, in float32.
        shape: What is trained.
    """

    def __init__(self, decoder: Any, shape: Shape) -> None:
        super().__init__()
        self.adapters = attach(
            decoder, shape.targets, rank=shape.rank, alpha=shape.alpha, seed=shape.seed
        )
        self.decoder = decoder
        weight = decoder.get_output_embeddings().weight
        self.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device))

    def forward(self, ids: Tensor) -> Tensor:
        """What each token was expected to be worth by those in front of it.

        Args:
            ids: (B, T).

        Returns:
            (B, T); the first of each text is NaN.
        """
        states = self.decoder.base_model(input_ids=ids[:, :-1], use_cache=False)
        head = self.decoder.get_output_embeddings().weight
        known = came_next(states.last_hidden_state, head, self.bias, ids[:, 1:])
        return torch.cat((known.new_full((len(ids), 1), math.nan), known), dim=1)

    def trained(self) -> list[nn.Parameter]:
        """The adapters' matrices and the bias: all that takes a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def came_next(hidden: Tensor, head: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """``M(s)[a]`` for one ``a`` behind each state, without the other entries of ``M(s)``.

    Args:
        hidden: (…, C).
        head: (V, C).
        bias: (V,).
        ids: (…) the tokens that came next.
    """
    return (hidden * head[ids]).sum(-1) + bias[ids]


def squared_errors(predicted: Tensor, rewards: Tensor) -> Tensor:
    """The loss of every token that has a reward, (n,)."""
    known = ~rewards.isnan()
    return (predicted[known] - rewards[known]).square()


def collate(texts: Sequence[TokenRewards], device: torch.device | str = "cpu") -> Batch:
    """Some texts as one batch. What pads them stands behind them, where nothing looks."""
    width = max(len(text.token_ids) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    rewards = torch.full((len(texts), width), math.nan)
    for row, text in enumerate(texts):
        ids[row, : len(text.token_ids)] = torch.tensor(text.token_ids)
        rewards[row, : len(text.rewards)] = torch.tensor(text.rewards)
    return Batch(ids.to(device), rewards.to(device))


def load_network(base: Path, shape: Shape, device: str = "cpu") -> Multifurcation:
    """A base model's directory, ready to be trained.

    Raises:
        TrainingError: The base cannot be read, or lacks the layers to adapt.
    """
    from transformers import AutoModelForCausalLM

    try:
        decoder: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as err:
        raise TrainingError(f"{base}: not readable as a language model: {err}") from err
    return Multifurcation(decoder.to(device).eval(), shape)


@torch.no_grad()
def predict(
    network: Multifurcation, texts: Sequence[TokenRewards], *, texts_per_batch: int = 32
) -> list[tuple[float, ...]]:
    """What every token of every text was expected to be worth; the first of each is NaN."""
    device = network.bias.device
    order = sorted(range(len(texts)), key=lambda at: len(texts[at].token_ids))
    found: dict[int, tuple[float, ...]] = {}
    for start in range(0, len(order), texts_per_batch):
        places = order[start : start + texts_per_batch]
        values = network(collate([texts[at] for at in places], device).ids).tolist()
        for at, row in zip(places, values, strict=True):
            found[at] = tuple(row[: len(texts[at].token_ids)])
    return [found[at] for at in range(len(texts))]
