"""A multifurcation reward model in exactly the published layout, over a tiny random base.

The names, dtypes and number of its tensors are those released with Saffron-1 (16 layers, rank 4 on
the query and value projections); widths and numbers are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.contract.tiny_rewards import HIDDEN, LLAMA3, LLAMA3_SPECIAL, SHAPE, byte_level

RANK: Final = 4
WIDTHS: Final = {"q_proj": HIDDEN, "v_proj": HIDDEN // 2}  # two query heads, one value head
STEM: Final = "base_model.model.model.layers"


def write_multifurcation(
    directory: Path, *, seed: int = 0, layers: int = 16, context_tokens: int = 256
) -> Path:
    """The model's directory; its base lies beside it, in `base`."""
    base, model = directory / "base", directory / "mrm"
    fast = byte_level(LLAMA3_SPECIAL, LLAMA3, "<|begin_of_text|>")
    fast.save_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(fast),
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=[fast.eos_token_id],
        **{**SHAPE, "num_hidden_layers": layers},
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(base)
    write_adapter(model, layers=layers, vocab=len(fast), seed=seed)
    return model


def write_adapter(directory: Path, *, layers: int, vocab: int, seed: int) -> None:
    """The four files."""
    directory.mkdir()
    draw = torch.Generator().manual_seed(seed)
    config = {
        "base_model_name_or_path": "meta-llama/Llama-Guard-3-1B",
        "bias": "none",
        "fan_in_fan_out": False,
        "layers_to_transform": None,
        "lora_alpha": 4,
        "lora_dropout": 0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    adapter = {}
    for layer in range(layers):
        for name, width in WIDTHS.items():
            stem = f"{STEM}.{layer}.self_attn.{name}"
            adapter[f"{stem}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=draw) * 0.2
            adapter[f"{stem}.lora_B.weight"] = torch.randn(width, RANK, generator=draw) * 0.2
    save_file(adapter, directory / "adapter_model.safetensors")
    bias = torch.randn(vocab, generator=draw).bfloat16().requires_grad_()
    torch.save(bias, directory / "lm_head_bias.pt")
    unseen = torch.rand(vocab, generator=draw) < 0.5
    unseen[: len(LLAMA3_SPECIAL)] = True  # as published: every special token
    torch.save(unseen, directory / "unseen_mask.pt")
