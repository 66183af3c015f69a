"""A LLaDA2 of random weights in the published layout, with a byte-level tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB = 157184  # the mask's id, 156895, is fixed in SGLang
BLOCK = 32
_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _EXPERTS = 32, 4, 2, 8, 4
_OUT_OF_REACH = -60.0


def write_tiny_llada2(directory: Path, *, readable: int, eos_id: int, context_tokens: int) -> Path:
    """Write config.json and model.safetensors beside a tokenizer that is there.

    Args:
        directory: Where.
        readable: Ids of the tokenizer; the model draws these, but for its end.
        eos_id: Its end.
        context_tokens: The longest sequence.
    """
    config = {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "qwen2_moe",  # one that transformers has; SGLang reads the architecture
        "vocab_size": VOCAB,
        "hidden_size": _HIDDEN,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "n_group": 0,
        "topk_group": 0,
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": True,
        "score_function": "sigmoid",
        "routed_scaling_factor": 1.0,
        "router_dtype": "fp32",
        "hidden_act": "silu",
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "norm_head": False,
        "embedding_dropout": 0.0,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": context_tokens,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        _weights(readable, eos_id), directory / "model.safetensors", metadata={"format": "pt"}
    )
    return directory


def _weights(readable: int, eos_id: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) / math.sqrt(columns)

    def into(columns: int) -> torch.Tensor:
        """Writes to all of the stream but its last place, which stays constant."""
        weight = draw(_HIDDEN, columns)
        weight[-1] = 0
        return weight

    def mlp(prefix: str, width: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.gate_proj.weight": draw(width, _HIDDEN),
            f"{prefix}.up_proj.weight": draw(width, _HIDDEN),
            f"{prefix}.down_proj.weight": into(width),
        }

    embedding, head = draw(VOCAB, _HIDDEN) * 6, draw(VOCAB, _HIDDEN) * 2
    embedding[:, -1] = 3.0
    head[:, -1] = 0.0
    head[eos_id] = head[readable:] = 0.0
    head[eos_id, -1] = head[readable:, -1] = _OUT_OF_REACH
    found = {
        "model.word_embeddings.weight": embedding,
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": head,
    }
    for layer in range(2):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.input_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.post_attention_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.attention.query_key_value.weight": draw(
                (_HEADS + 2 * _KV_HEADS) * _HEAD_DIM, _HIDDEN
            ),
            f"{at}.attention.query_layernorm.weight": torch.ones(_HEAD_DIM),
            f"{at}.attention.key_layernorm.weight": torch.ones(_HEAD_DIM),
            f"{at}.attention.dense.weight": into(_HEADS * _HEAD_DIM),
        }
    found |= mlp("model.layers.0.mlp", 64)
    at = "model.layers.1.mlp"
    found |= {f"{at}.gate.weight": draw(_EXPERTS, _HIDDEN)}
    found |= {f"{at}.gate.expert_bias": torch.zeros(_EXPERTS)}
    found |= mlp(f"{at}.shared_experts", 16)
    for expert in range(_EXPERTS):
        found |= mlp(f"{at}.experts.{expert}", 16)
    return found
