"""Tiny random decoders as model directories, and short ways to ask an embedded engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engines.base import Continuation, Sampling, TokenIds
from engines.embedded.engine import EmbeddedEngine, open_engine
from tests.contract.tiny_llama import write_tiny_llama

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "bos_token_id": None,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Variant:
    """A kind of decoder and what is unusual about it."""

    name: str
    kind: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)
    max_shard_size: str = "1GB"


VARIANTS = (
    Variant("llama-mha", options={"num_key_value_heads": 4}),
    Variant("llama-gqa"),
    Variant("llama-mqa-sharded", options={"num_key_value_heads": 1}, max_shard_size="20KB"),
    Variant("llama-tied", options={"tie_word_embeddings": True}),
    Variant("llama-bias", options={"attention_bias": True, "mlp_bias": True}),
    Variant(
        "llama-llama3-rope",
        options={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    Variant(
        "llama-linear-rope",
        options={
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            "head_dim": 16,
        },
    ),
    Variant(
        "llama-yarn-rope",
        options={
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 48,
            },
            "head_dim": 16,
        },
    ),
    Variant("qwen2-tied", kind="qwen2", options={"tie_word_embeddings": True}),
    Variant("qwen2-bias", kind="qwen2"),
    Variant("qwen3-wide-heads", kind="qwen3", options={"head_dim": 16}),
    Variant("qwen3-bias", kind="qwen3", options={"head_dim": 8, "attention_bias": True}),
)


def write_model(directory: Path, variant: Variant, *, seed: int = 0) -> Path:
    """A model directory whose every weight is random: biases and norms too."""
    write_tiny_llama(directory)
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    eos = json.loads((directory / "config.json").read_text())["eos_token_id"]
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (directory / name).unlink(missing_ok=True)
    config_kind, model_kind = KINDS[variant.kind]
    config = config_kind(
        **{**SHAPE, "vocab_size": vocab_size, "eos_token_id": eos, **variant.options}
    )
    torch.manual_seed(seed)
    model = model_kind(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(directory, max_shard_size=variant.max_shard_size)
    return directory


def load_theirs(directory: Path, kind: str = "llama") -> PreTrainedModel:
    """The same directory in Hugging Face's own code, float32."""
    model: PreTrainedModel = KINDS[kind][1].from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def open_tiny(directory: Path, **options: Any) -> EmbeddedEngine:
    """An embedded engine over a small pool."""
    return open_engine("tiny", str(directory), {"kv_tokens": 4096, **options})


async def children(
    engine: EmbeddedEngine,
    prompt: TokenIds,
    how: Sampling,
    seeds: Sequence[int] = (0,),
    *,
    tenant: str = "",
) -> list[Continuation]:
    """Children of a prompt in the order of their seeds; every claim is given back."""
    prefix = await engine.open(prompt, tenant=tenant)
    done = []
    async for item in engine.sample(prefix, how, n=len(seeds), seeds=seeds):
        if isinstance(item, Continuation):
            item.prefix.release()
            done.append(item)
    prefix.release()
    return sorted(done, key=lambda child: child.index)


def require_idle(engine: EmbeddedEngine) -> None:
    """No page is claimed, and the books are right."""
    stats = engine.stats()
    assert (stats.pages_claimed, stats.running, stats.waiting) == (0, 0, 0), stats
    assert engine._runtime.ledger.num_reserved == 0
    engine.check()
