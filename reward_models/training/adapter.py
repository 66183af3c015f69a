"""Low-rank adapters over the linear layers of a network, in PEFT's file layout.

``W`` becomes ``W + (alpha / rank) * B @ A`` with A (rank, in) and B (out, rank). The sum is formed
at each forward pass, which for small matrices costs less than a second product over the tokens.

Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterShape:
    """Which layers are adapted, and how far."""

    rank: int = 32
    alpha: int = 64
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    @property
    def scale(self) -> float:
        """What ``B @ A`` is multiplied by."""
        return self.alpha / self.rank


class AdaptedLinear(nn.Module):
    """A frozen linear layer without bias, plus a trained low-rank matrix."""

    def __init__(self, base: nn.Linear, shape: AdapterShape) -> None:
        """A starts random and B at zero, so that the layer starts unchanged."""
        super().__init__()
        self.weight = base.weight
        self.weight.requires_grad_(False)
        self.scale = shape.scale
        new = self.weight.new_zeros
        self.lora_A = nn.Parameter(new(shape.rank, base.in_features))
        self.lora_B = nn.Parameter(new(base.out_features, shape.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def merged(self) -> Tensor:
        """The adapted weight (out, in)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return F.linear(x, self.merged())


def add_adapter(network: nn.Module, shape: AdapterShape) -> list[nn.Parameter]:
    """Freeze the network, adapt its target layers in place; returns what is to be trained."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if name in shape.target_modules and isinstance(child, nn.Linear):
                adapted = AdaptedLinear(child, shape)
                setattr(parent, name, adapted)
                trained += [adapted.lora_A, adapted.lora_B]
    return trained


def save_adapter(network: nn.Module, shape: AdapterShape, directory: Path, base: str) -> None:
    """Write config and bf16 weights as PEFT does; ``base`` is where the base model lies."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLinear):
            for part, weight in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
                key = f"{_PREFIX}{name}.{part}.weight"
                weights[key] = weight.detach().to("cpu", torch.bfloat16).contiguous()
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(shape.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def merge_adapter(network: nn.Module, directory: Path) -> None:
    """Add a saved adapter to the weights of a plain network, in place and in their dtype.

    Raises:
        KeyError: the adapter names a layer that the network lacks.
    """
    config = json.loads((directory / CONFIG_FILE).read_text())
    scale = config["lora_alpha"] / config["r"]
    weights = load_file(directory / WEIGHTS_FILE)
    parameters = dict(network.named_parameters())
    suffix = ".lora_A.weight"
    for key in weights:
        if not key.endswith(suffix):
            continue
        name = key.removeprefix(_PREFIX).removesuffix(suffix)
        low, high = weights[key], weights[f"{_PREFIX}{name}.lora_B.weight"]
        target = parameters[f"{name}.weight"]
        with torch.no_grad():
            target.add_((scale * (high.float() @ low.float())).to(target))
