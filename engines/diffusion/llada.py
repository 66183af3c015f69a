"""LLaDA: a Llama that sees the whole row, under the names of OLMo.

Source: ``LLaDAModelLM`` of the published checkpoints; arXiv 2502.09992. No time input, no shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engines.diffusion.checkpoint import Checkpoint, Keys, Place, check_tensors
from engines.diffusion.network import BidirectionalNetwork
from engines.embedded.config import DecoderConfig, Rope, read_eos_ids
from engines.embedded.weights import Tensors, read_tensors, read_weights

MASK_ID: Final = 126336
"""Of the published tokenizer, for a config.json that does not say."""

_SERVED: Final[Mapping[str, object]] = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "block_group_size": 1,
    "multi_query_attention": False,
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "rope_scaling": None,
    "quantization_config": None,
    "quantization": None,
}

_LAYER: Final = {
    "attn_norm.weight": "input_layernorm.weight",
    "q_proj.weight": "self_attn.q_proj.weight",
    "k_proj.weight": "self_attn.k_proj.weight",
    "v_proj.weight": "self_attn.v_proj.weight",
    "attn_out.weight": "self_attn.o_proj.weight",
    "ff_norm.weight": "post_attention_layernorm.weight",
    "ff_proj.weight": "mlp.gate_proj.weight",
    "up_proj.weight": "mlp.up_proj.weight",
    "ff_out.weight": "mlp.down_proj.weight",
}
_BIASES: Final = {
    "q_proj.bias": "self_attn.q_proj.bias",
    "k_proj.bias": "self_attn.k_proj.bias",
    "v_proj.bias": "self_attn.v_proj.bias",
}
_TOP: Final = "model.transformer."


def read_llada(place: Place) -> Checkpoint:
    """The model in a directory.

    Raises:
        ModelLoadError: A key or a tensor is missing, misshapen, or not served.
    """
    path = place.directory / "config.json"
    keys = Keys(path, place.raw)
    for key, value in _SERVED.items():
        keys.require(key, value)
    config = _config(keys, read_eos_ids(place.directory, place.raw))
    tensors = read_tensors(place.directory)
    check_tensors(place.directory, tensors, _shapes(config))
    weights = read_weights(
        place.directory,
        config,
        dtype=place.dtype,
        device=place.device,
        tensors=_renamed(tensors, config),
    )
    vocab_size = keys.count("vocab_size")
    return Checkpoint(
        network=BidirectionalNetwork(config, weights, shift=0, vocab_size=vocab_size),
        mask_id=keys.token("mask_token_id", MASK_ID, vocab_size),
        max_length=config.context_tokens,
        kernel="low_confidence",
        eos_ids=config.eos_ids,
        parameters=weights.parameters,
    )


def _config(keys: Keys, eos_ids: frozenset[int]) -> DecoderConfig:
    hidden, heads = keys.count("d_model"), keys.count("n_heads")
    return DecoderConfig(
        model_type="llada",
        vocab_size=keys.count("embedding_size", keys.count("vocab_size")),
        hidden=hidden,
        layers=keys.count("n_layers"),
        heads=heads,
        kv_heads=keys.count("n_kv_heads", heads),
        head_dim=hidden // heads,
        inner=keys.count("mlp_hidden_size", keys.count("mlp_ratio", 4) * hidden),
        eps=keys.number("rms_norm_eps", 1e-5),
        context_tokens=keys.count("max_sequence_length"),
        is_tied=keys.flag("weight_tying"),
        has_qk_norm=False,
        has_qkv_bias=keys.flag("include_qkv_bias"),
        has_out_bias=False,
        has_mlp_bias=False,
        rope=Rope("default", keys.number("rope_theta", 10000.0), {}),
        eos_ids=eos_ids,
    )


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Published names and shapes."""
    hidden, inner, vocab = config.hidden, config.inner, config.vocab_size
    rows = config.kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "q_proj.weight": (hidden, hidden),
        "k_proj.weight": (rows, hidden),
        "v_proj.weight": (rows, hidden),
        "attn_out.weight": (hidden, hidden),
        "ff_norm.weight": (hidden,),
        "ff_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "ff_out.weight": (hidden, inner),
    }
    if config.has_qkv_bias:
        layer |= {"q_proj.bias": (hidden,), "k_proj.bias": (rows,), "v_proj.bias": (rows,)}
    shapes: dict[str, tuple[int, ...]] = {f"{_TOP}wte.weight": (vocab, hidden)}
    for number in range(config.layers):
        shapes |= {f"{_TOP}blocks.{number}.{name}": shape for name, shape in layer.items()}
    shapes[f"{_TOP}ln_f.weight"] = (hidden,)
    if not config.is_tied:
        shapes[f"{_TOP}ff_out.weight"] = (vocab, hidden)
    return shapes


def _renamed(tensors: Tensors, config: DecoderConfig) -> Tensors:
    """The same tensors under a Llama's names."""
    names = {
        f"{_TOP}wte.weight": "model.embed_tokens.weight",
        f"{_TOP}ln_f.weight": "model.norm.weight",
    }
    if not config.is_tied:
        names[f"{_TOP}ff_out.weight"] = "lm_head.weight"
    of_layer = _LAYER | (_BIASES if config.has_qkv_bias else {})
    for number in range(config.layers):
        for old, new in of_layer.items():
            names[f"{_TOP}blocks.{number}.{old}"] = f"model.layers.{number}.{new}"
    return {new: tensors[old] for old, new in names.items()}
