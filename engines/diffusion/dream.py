"""Dream: Qwen2's shape and names, the whole row in sight, logits shifted by one position.

Source: ``DreamModel`` of the published checkpoints. A token is predicted from the position before
it, as in the autoregressive model that Dream was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engines.diffusion.checkpoint import Checkpoint, Keys, Place, check_tensors
from engines.diffusion.network import BidirectionalNetwork
from engines.embedded.config import DecoderConfig, Rope, read_eos_ids
from engines.embedded.weights import read_tensors, read_weights

MASK_ID: Final = 151666
"""Of the published tokenizer, for a config.json that does not say."""

MAX_LENGTH: Final = 2048
"""Its authors name this context; config.json has that of the model it was made from."""

_SERVED: Final[Mapping[str, object]] = {
    "hidden_act": "silu",
    "use_mrope": False,
    "use_sliding_window": False,
    "rope_scaling": None,
    "quantization_config": None,
}


def read_dream(place: Place) -> Checkpoint:
    """The model in a directory.

    Raises:
        ModelLoadError: A key or a tensor is missing, misshapen, or not served.
    """
    keys = Keys(place.directory / "config.json", place.raw)
    for key, value in _SERVED.items():
        keys.require(key, value)
    config = _config(keys, read_eos_ids(place.directory, place.raw))
    tensors = read_tensors(place.directory)
    check_tensors(place.directory, tensors, _shapes(config), ("rotary_emb.inv_freq",))
    weights = read_weights(
        place.directory, config, dtype=place.dtype, device=place.device, tensors=tensors
    )
    return Checkpoint(
        network=BidirectionalNetwork(config, weights, shift=1, vocab_size=config.vocab_size),
        mask_id=keys.token("mask_token_id", MASK_ID, config.vocab_size),
        max_length=config.context_tokens,
        kernel="entropy",
        eos_ids=config.eos_ids,
        parameters=weights.parameters,
    )


def _config(keys: Keys, eos_ids: frozenset[int]) -> DecoderConfig:
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    positions = keys.count("max_position_embeddings", MAX_LENGTH)
    return DecoderConfig(
        model_type="dream",
        vocab_size=keys.count("vocab_size"),
        hidden=hidden,
        layers=keys.count("num_hidden_layers"),
        heads=heads,
        kv_heads=keys.count("num_key_value_heads", heads),
        head_dim=hidden // heads,
        inner=keys.count("intermediate_size"),
        eps=keys.number("rms_norm_eps", 1e-6),
        context_tokens=min(positions, MAX_LENGTH),
        is_tied=keys.flag("tie_word_embeddings"),
        has_qk_norm=False,
        has_qkv_bias=True,
        has_out_bias=False,
        has_mlp_bias=False,
        rope=Rope("default", keys.number("rope_theta", 10000.0), {}),
        eos_ids=eos_ids,
    )


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config.hidden, config.inner, config.vocab_size
    rows = config.kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (rows, hidden),
        "self_attn.k_proj.bias": (rows,),
        "self_attn.v_proj.weight": (rows, hidden),
        "self_attn.v_proj.bias": (rows,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for number in range(config.layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.is_tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes
