"""Tiny random checkpoints of LLaDA, Dream and MDLM, and their formulas in plain torch.

The references are written from the papers' definitions over the published tensor names, one
position and one head at a time where that is clearer, and share no code with the engine.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

VOCAB = 300
MASK = 299
EOS = 257
SPECIAL = {"<|endoftext|>": EOS, "<|im_end|>": 258, "<|eot_id|>": 259}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "

LLADA: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 48,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB + 4,
    "max_sequence_length": 96,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500000.0,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "mask_token_id": MASK,
    "eos_token_id": EOS,
}
DREAM: dict[str, Any] = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
}
MDLM: dict[str, Any] = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "vocab_size": VOCAB,
    "model_length": 96,
    "hidden_dim": 32,
    "cond_dim": 20,
    "n_blocks": 2,
    "n_heads": 4,
    "dropout": 0.1,
    "time_conditioning": False,
}
CONFIGS = {"llada": LLADA, "dream": DREAM, "mdlm": MDLM}


def write_tiny(directory: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of a family, with a tokenizer of bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[family], **changes}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors(family, seed), directory / "model.safetensors")
    write_byte_tokenizer(directory)
    return directory


def write_byte_tokenizer(directory: Path) -> None:
    """One token per byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)} | {"<|pad|>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", *SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_tensors(family: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the family's published names."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"llada": _llada_shapes, "dream": _dream_shapes, "mdlm": _mdlm_shapes}[family]()
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 2 else 0.1
        drawn = torch.randn(shape, generator=rng) * scale
        tensors[name] = drawn + 1 if "norm" in name or "ln_f" in name else drawn
    return tensors


def reference_logits(family: str, tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logits (T, V) of the token *at* each position of one row, float64."""
    named = {name: tensor.double() for name, tensor in tensors.items()}
    forward = {"llada": _llada, "dream": _dream, "mdlm": _mdlm}[family]
    return forward(named, torch.tensor(ids))


def _llada_shapes() -> dict[str, tuple[int, ...]]:
    top, rows = "model.transformer.", VOCAB + 4
    shapes: dict[str, tuple[int, ...]] = {f"{top}wte.weight": (rows, 32)}
    for i in range(2):
        at = f"{top}blocks.{i}."
        shapes |= {f"{at}{n}_proj.weight": (32, 32) for n in "qkv"}
        shapes |= {f"{at}attn_norm.weight": (32,), f"{at}ff_norm.weight": (32,)}
        shapes |= {f"{at}attn_out.weight": (32, 32), f"{at}ff_out.weight": (32, 48)}
        shapes |= {f"{at}ff_proj.weight": (48, 32), f"{at}up_proj.weight": (48, 32)}
    return shapes | {f"{top}ln_f.weight": (32,), f"{top}ff_out.weight": (rows, 32)}


def _dream_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, 32)}
    for i in range(2):
        at = f"model.layers.{i}."
        for n, rows in (("q", 32), ("k", 16), ("v", 16)):
            shapes[f"{at}self_attn.{n}_proj.weight"] = (rows, 32)
            shapes[f"{at}self_attn.{n}_proj.bias"] = (rows,)
        shapes[f"{at}self_attn.o_proj.weight"] = (32, 32)
        shapes |= {f"{at}mlp.{n}_proj.weight": (48, 32) for n in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (32, 48)
        shapes |= {f"{at}{n}_layernorm.weight": (32,) for n in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (32,), "lm_head.weight": (VOCAB, 32)}


def _mdlm_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (VOCAB, 32),
        "sigma_map.mlp.0.weight": (20, 256),
        "sigma_map.mlp.0.bias": (20,),
        "sigma_map.mlp.2.weight": (20, 20),
        "sigma_map.mlp.2.bias": (20,),
        "rotary_emb.inv_freq": (4,),
        "output_layer.norm_final.weight": (32,),
        "output_layer.linear.weight": (VOCAB, 32),
        "output_layer.linear.bias": (VOCAB,),
        "output_layer.adaLN_modulation.weight": (64, 20),
        "output_layer.adaLN_modulation.bias": (64,),
    }
    for i in range(2):
        at = f"blocks.{i}."
        shapes |= {f"{at}norm1.weight": (32,), f"{at}norm2.weight": (32,)}
        shapes |= {f"{at}attn_qkv.weight": (96, 32), f"{at}attn_out.weight": (32, 32)}
        shapes |= {f"{at}mlp.0.weight": (128, 32), f"{at}mlp.0.bias": (128,)}
        shapes |= {f"{at}mlp.2.weight": (32, 128), f"{at}mlp.2.bias": (32,)}
        shapes[f"{at}adaLN_modulation.weight"] = (192, 20)
        shapes[f"{at}adaLN_modulation.bias"] = (192,)
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _turned(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of (T, D): each pair (i, i + D/2) turned by its angle."""
    tokens, width = x.shape
    out = x.clone()
    for position in range(tokens):
        for i in range(width // 2):
            angle = position * theta ** (-2 * i / width)
            a, b = x[position, i], x[position, i + width // 2]
            out[position, i] = a * math.cos(angle) - b * math.sin(angle)
            out[position, i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def _attended(q: Tensor, k: Tensor, v: Tensor, heads: int, theta: float) -> Tensor:
    """Every position attends to all; q is (T, H * D), k and v may have fewer heads."""
    width = q.shape[1] // heads
    shared = heads // (k.shape[1] // width)
    parts = []
    for head in range(heads):
        own, other = slice(head * width, (head + 1) * width), head // shared
        from_head = slice(other * width, (other + 1) * width)
        scores = _turned(q[:, own], theta) @ _turned(k[:, from_head], theta).T / math.sqrt(width)
        parts.append(scores.softmax(-1) @ v[:, from_head])
    return torch.cat(parts, dim=1)


def _llada(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    top = "model.transformer."
    x = w[f"{top}wte.weight"][ids]
    for i in range(2):
        at = f"{top}blocks.{i}."
        h = _rms(x, w[f"{at}attn_norm.weight"], 1e-5)
        q, k, v = (h @ w[f"{at}{n}_proj.weight"].T for n in "qkv")
        x = x + _attended(q, k, v, 4, 500000.0) @ w[f"{at}attn_out.weight"].T
        h = _rms(x, w[f"{at}ff_norm.weight"], 1e-5)
        gate, up = h @ w[f"{at}ff_proj.weight"].T, h @ w[f"{at}up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[f"{at}ff_out.weight"].T
    return (_rms(x, w[f"{top}ln_f.weight"], 1e-5) @ w[f"{top}ff_out.weight"].T)[:, :VOCAB]


def _dream(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = w["model.embed_tokens.weight"][ids]
    for i in range(2):
        at = f"model.layers.{i}."
        h = _rms(x, w[f"{at}input_layernorm.weight"], 1e-6)
        q, k, v = (
            h @ w[f"{at}self_attn.{n}_proj.weight"].T + w[f"{at}self_attn.{n}_proj.bias"]
            for n in "qkv"
        )
        x = x + _attended(q, k, v, 4, 1000000.0) @ w[f"{at}self_attn.o_proj.weight"].T
        h = _rms(x, w[f"{at}post_attention_layernorm.weight"], 1e-6)
        gate, up = h @ w[f"{at}mlp.gate_proj.weight"].T, h @ w[f"{at}mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[f"{at}mlp.down_proj.weight"].T
    logits = _rms(x, w["model.norm.weight"], 1e-6) @ w["lm_head.weight"].T
    return torch.cat([logits[:1], logits[:-1]])


def _mdlm(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    w = {name.removeprefix("backbone."): tensor for name, tensor in w.items()}

    def silu(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def tanh_gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    wave = torch.tensor([math.cos(0)] * 128 + [math.sin(0)] * 128, dtype=torch.float64)
    time = silu(wave @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"])
    time = silu(time @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])
    x = w["vocab_embed.embedding"][ids]
    for i in range(2):
        at = f"blocks.{i}."
        made = time @ w[f"{at}adaLN_modulation.weight"].T + w[f"{at}adaLN_modulation.bias"]
        shift, scale, gate, shift2, scale2, gate2 = made.split(32)
        h = norm(x, w[f"{at}norm1.weight"]) * (1 + scale) + shift
        q, k, v = (h @ w[f"{at}attn_qkv.weight"].T).split(32, dim=1)
        x = x + gate * (_attended(q, k, v, 4, 10000.0) @ w[f"{at}attn_out.weight"].T)
        h = norm(x, w[f"{at}norm2.weight"]) * (1 + scale2) + shift2
        h = tanh_gelu(h @ w[f"{at}mlp.0.weight"].T + w[f"{at}mlp.0.bias"])
        x = x + gate2 * (h @ w[f"{at}mlp.2.weight"].T + w[f"{at}mlp.2.bias"])
    made = time @ w["output_layer.adaLN_modulation.weight"].T
    shift, scale = (made + w["output_layer.adaLN_modulation.bias"]).split(32)
    h = norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return h @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]
