"""A process reward model with random weights over a tiny random Llama, as model directories."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.contract.tiny_llama import write_tiny_llama

RANK = 2
HIDDEN = 32


def write_tiny_judge(directory: Path, *, seed: int = 0) -> Path:
    """The judge's directory; its base lies beside it."""
    write_tiny_llama(directory / "base", seed=seed)
    judge = directory / "judge"
    judge.mkdir()
    draw = torch.Generator().manual_seed(seed)
    (judge / "bough.json").write_text(json.dumps({"id": "tiny-prm", "base": "../base"}))
    (judge / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4}))
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {
        f"{stem}.lora_A.weight": torch.randn(RANK, HIDDEN, generator=draw),
        f"{stem}.lora_B.weight": torch.randn(HIDDEN, RANK, generator=draw),
    }
    head = {
        "weight": torch.randn(1, HIDDEN, generator=draw),
        "bias": torch.zeros(1),
    }
    save_file(adapter, judge / "adapter_model.safetensors")
    head["likelihood"] = torch.full((1,), 0.05)
    save_file(head, judge / "head.safetensors")
    return judge
