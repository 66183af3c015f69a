"""What makes values of hidden states. N judged tokens, C hidden width.

A head is data with one verb. It computes in float32 whatever the decoder's dtype, because values
near 0 and 1 lie closer together than bfloat16 can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import torch
from torch.nn.functional import linear, relu

from engines.base import TokenIds
from engines.embedded.tokenizer import ChatTokenizer
from engines.embedded.weights import Tensors
from reward_models.errors import RewardLoadError
from reward_models.layouts import single_token
from reward_models.presets import HeadSpec
from reward_models.readings import Judged

_ACTIVATIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "softmax": lambda logits: logits.softmax(-1)[:, 1],  # (N, 2), the second is the good one
    "sigmoid": lambda logits: torch.sigmoid(logits[:, 0]),
    "none": lambda logits: logits[:, 0],
}


class Head(Protocol):
    """Values of steps from hidden states."""

    @property
    def reads_tokens(self) -> bool:
        """Whether it needs the states of all new tokens, and not only of those that are judged."""

    def judge(
        self, hidden: torch.Tensor, rows: Sequence[int], tokens: TokenIds, logp: float
    ) -> list[Judged]:
        """Judge the steps whose states stand at `rows`.

        Args:
            hidden: (N, C) states; of all new tokens, from the one in front of them on, where the
                head `reads_tokens`.
            rows: Of the judged tokens in `hidden`.
            tokens: Those behind the first of `hidden`, N - 1 of them.
            logp: Of the answer in front of them.
        """


class StackHead:
    """Linear layers with ReLU in between, and an activation.

    Args:
        layers: (weight (out, in), bias (out,) or None) of each.
        activation: softmax, sigmoid or none.
    """

    reads_tokens = False

    def __init__(
        self, layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]], activation: str
    ) -> None:
        self._layers = tuple(layers)
        self._activation = _ACTIVATIONS[activation]

    def judge(
        self, hidden: torch.Tensor, rows: Sequence[int], tokens: TokenIds, logp: float
    ) -> list[Judged]:
        """See `Head.judge`."""
        x = hidden[list(rows)].float()
        for number, (weight, bias) in enumerate(self._layers):
            x = linear(relu(x) if number else x, weight, bias)
        return [Judged(value) for value in self._activation(x).tolist()]


class LikelihoodHead:
    """``sigmoid(weight @ h + bias + likelihood * sum(log p))`` over an answer's tokens.

    Args:
        weight: (C,).
        bias: (1,).
        likelihood: What a nat of log-probability is worth.
        logits: Next-token logits (N, vocab) of hidden states (N, C).
    """

    reads_tokens = True

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        likelihood: float,
        logits: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._weight = weight
        self._bias = bias
        self._likelihood = likelihood
        self._logits = logits

    def judge(
        self, hidden: torch.Tensor, rows: Sequence[int], tokens: TokenIds, logp: float
    ) -> list[Judged]:
        """See `Head.judge`."""
        at = list(rows)
        values = hidden[at].float() @ self._weight + self._bias
        sums = torch.zeros(len(at))
        if self._likelihood:
            logps = self._logits(hidden[:-1]).log_softmax(-1)
            wanted = torch.tensor(tokens, device=logps.device).unsqueeze(1)
            new = logps.gather(1, wanted).squeeze(1).cumsum(0)
            sums = logp + torch.cat((new.new_zeros(1), new))[at]
            values = values + self._likelihood * sums
        judged = map(Judged, torch.sigmoid(values).tolist(), sums.tolist())
        return list(judged)


def stack_of(
    spec: HeadSpec, tensors: Tensors, where: Path, hidden: int, device: torch.device
) -> StackHead:
    """The linear layers that a preset names, from a checkpoint's tensors.

    Args:
        spec: Names and widths.
        tensors: The checkpoint's.
        where: The file they come from, for messages.
        hidden: Width of the decoder.
        device: Where to compute.

    Raises:
        RewardLoadError: A tensor is missing, misshapen or not finite.
    """
    layers = []
    for number, name in enumerate(spec.layers):
        width = spec.outputs if number == len(spec.layers) - 1 else hidden
        weight = checked(tensors, f"{name}.weight", (width, hidden), where)
        bias = checked(tensors, f"{name}.bias", (width,), where) if spec.has_bias else None
        layers.append((weight.to(device), None if bias is None else bias.to(device)))
    return StackHead(layers, spec.activation)


def prediction_of(
    spec: HeadSpec, output: torch.Tensor, tokenizer: ChatTokenizer, directory: Path
) -> StackHead:
    """The chance of the good token against the bad one, by the model's own output head.

    Args:
        spec: The two tokens.
        output: (vocab, C) the output head.
        tokenizer: The model's.
        directory: Where it came from, for messages.

    Raises:
        RewardLoadError: One of them is not a single token.
    """
    pair = [single_token(tokenizer, directory, text) for text in (spec.bad, spec.good)]
    return StackHead([(output[pair].float(), None)], spec.activation)


def checked(tensors: Tensors, key: str, shape: tuple[int, ...], where: Path) -> torch.Tensor:
    """A tensor of this shape, in float32.

    Raises:
        RewardLoadError: It is missing, misshapen or not finite.
    """
    tensor = tensors.get(key)
    if tensor is None:
        raise RewardLoadError(f"{where}: the tensor {key!r} is missing")
    if tuple(tensor.shape) != shape:
        raise RewardLoadError(f"{where}: {key!r} must be {shape}, not {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise RewardLoadError(f"{where}: {key!r} holds NaN or infinity")
    return tensor.float()
