"""Low-rank adapters on the linear layers of a frozen network, named as PEFT names them.

An adapter adds ``(alpha / rank) B A x`` to what its layer gives. ``A`` starts at random and ``B``
at zero, so that training starts from the network as it was. `reward_models.lora` merges what is
saved here into the network's weights when a model is served.

Source: LoRA, Hu et al., arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.training.errors import TrainingError

_PREFIX: Final = "base_model.model."


class LowRank(nn.Module):
    """A frozen linear layer and its adapter.

    Args:
        linear: The layer; it keeps its weights, and they take no gradient.
        rank: Rows of ``A`` and columns of ``B``.
        alpha: The adapter counts ``alpha / rank``.
        draw: Where ``A`` comes from.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, draw: torch.Generator) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        bound = 1 / math.sqrt(linear.in_features)
        a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=draw)
        self.lora_A = nn.Parameter(a.to(linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight.device))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        y: Tensor = self.linear(x)
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def attach(
    network: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, seed: int
) -> dict[str, LowRank]:
    """Freeze a network and put an adapter on every linear layer of these names.

    Returns:
        The adapters, by the path of their layer, ``model.layers.0.self_attn.q_proj`` for example.

    Raises:
        TrainingError: A target is no linear layer of the network, or the rank is not positive.
    """
    if rank < 1 or alpha <= 0:
        raise TrainingError(f"rank {rank} and alpha {alpha:g} must be above 0")
    network.requires_grad_(False)
    found = [
        (path, module)
        for path, module in network.named_modules()
        if path.rpartition(".")[2] in targets and isinstance(module, nn.Linear)
    ]
    missing = sorted(set(targets) - {path.rpartition(".")[2] for path, _ in found})
    if missing or not targets:
        raise TrainingError(f"the network has no linear layer called {', '.join(missing) or '?'}")
    draw = torch.Generator().manual_seed(seed)
    adapters = {}
    for path, linear in found:
        parent, _, name = path.rpartition(".")
        adapters[path] = LowRank(linear, rank, alpha, draw)
        setattr(network.get_submodule(parent), name, adapters[path])
    return adapters


def tensors_of(adapters: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The adapters' matrices in float32 on the CPU, by PEFT's names."""
    return {
        f"{_PREFIX}{path}.lora_{part}.weight": getattr(adapter, f"lora_{part}")
        .detach()
        .to("cpu", torch.float32)
        .contiguous()
        .clone()
        for path, adapter in adapters.items()
        for part in "AB"
    }


@torch.no_grad()
def restore(adapters: Mapping[str, LowRank], tensors: Mapping[str, Tensor]) -> None:
    """Put saved matrices back.

    Raises:
        TrainingError: They are not those of these adapters.
    """
    wanted = tensors_of(adapters)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise TrainingError("the saved adapters have other names or shapes than these")
    for path, adapter in adapters.items():
        for part in "AB":
            own: Tensor = getattr(adapter, f"lora_{part}")
            own.copy_(tensors[f"{_PREFIX}{path}.lora_{part}.weight"])
