"""Model directories that cannot be served: one line that names the file or the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.embedded.config import Rope, read_config
from engines.embedded.engine import open_engine
from engines.embedded.runtime import RuntimeOptions
from engines.embedded.weights import read_tensors
from engines.errors import ModelLoadError
from tests.embedded_models import VARIANTS, open_tiny, write_model

VARIANT = {variant.name: variant for variant in VARIANTS}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("llama-gqa", "llama-bias", "qwen2-bias", "llama-mqa-sharded", "qwen3-wide-heads")
    made = {}
    for name in names:
        made[name] = write_model(tmp_path_factory.mktemp(name), VARIANT[name])
    return made


@pytest.fixture
def copy_of(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(originals[name], tmp_path / "model"))

    return copy


@pytest.fixture
def model(copy_of: Callable[[str], Path]) -> Path:
    return copy_of("llama-gqa")


def refusal(directory: Path, **options: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ModelLoadError) as caught:
        open_engine("x", str(directory), {"kv_tokens": 256, **options})
    text = str(caught.value)
    assert "\n" not in text, text
    assert str(directory) in text
    return text


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        value[key] = new
        if new is None:
            del value[key]
    path.write_text(json.dumps(value))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_no_directory(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    text = refusal(model)
    assert name in text
    assert "missing" in text


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1]", b"", b'"x"'])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_broken_json_file_is_named(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    assert name in refusal(model)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"sliding_window": 32}, "sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 32}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "8"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_parameters": "yes"}, "rope"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"intermediate_size": "wide"}, "wide"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 kv heads"),
        ({"head_dim": 7}, "width 7"),
        ({"eos_token_id": "end"}, "end"),
        ({"eos_token_id": 10**6}, "eos_token_id"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rms_norm_eps": [1]}, "wrong type"),
        ({"vocab_size": 100}, "vocab_size 100"),
        ({"intermediate_size": 64}, "gate_proj"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
    ],
)
def test_a_config_that_is_not_served_says_why(
    model: Path, changes: dict[str, Any], named: str
) -> None:
    edit(model / "config.json", **changes)
    assert named in refusal(model)


def test_a_missing_shard_is_named(copy_of: Callable[[str], Path]) -> None:
    model = copy_of("llama-mqa-sharded")
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(model)


def test_an_index_without_its_map_is_named(copy_of: Callable[[str], Path]) -> None:
    model = copy_of("llama-mqa-sharded")
    index = model / "model.safetensors.index.json"
    edit(index, weight_map=None)
    assert "weight_map" in refusal(model)
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    assert "weight_map" in refusal(model)


def test_no_weights_at_all(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    assert "no *.safetensors file" in refusal(model)
    with pytest.raises(ModelLoadError):
        read_tensors(model)


@pytest.mark.parametrize("keep", [0, 4, 50, 0.5, 0.999])
def test_a_truncated_shard_is_named(model: Path, keep: float) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    assert "model.safetensors" in refusal(model)


@pytest.mark.parametrize(
    "key", [Q_PROJ, "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_missing_tensor_is_named(model: Path, key: str) -> None:
    edit_weights(model, lambda tensors: tensors.pop(key))
    assert key in refusal(model)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("qwen2-bias", "model.layers.0.self_attn.k_proj.bias"),
        ("llama-bias", "model.layers.0.self_attn.v_proj.bias"),
        ("llama-bias", "model.layers.0.self_attn.o_proj.bias"),
        ("llama-bias", "model.layers.1.mlp.up_proj.bias"),
        ("llama-bias", "model.layers.1.mlp.down_proj.bias"),
        ("qwen3-wide-heads", "model.layers.1.self_attn.k_norm.weight"),
    ],
)
def test_a_missing_bias_or_norm_is_named(
    copy_of: Callable[[str], Path], name: str, key: str
) -> None:
    model = copy_of(name)
    edit_weights(model, lambda tensors: tensors.pop(key))
    assert key in refusal(model)


def test_a_tensor_of_another_shape_is_named_with_both(model: Path) -> None:
    edit_weights(model, lambda tensors: tensors.update({Q_PROJ: torch.zeros(7, 32)}))
    text = refusal(model)
    assert Q_PROJ in text
    assert "(7, 32)" in text
    assert "(32, 32)" in text


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_tensor_that_is_not_finite_is_named(model: Path, bad: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q_PROJ][3, 4] = bad

    edit_weights(model, spoil)
    assert Q_PROJ in refusal(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_tensors_are_refused(model: Path, dtype: torch.dtype) -> None:
    edit_weights(model, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(dtype)}))
    assert Q_PROJ in refusal(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
async def test_other_float_types_are_converted(model: Path, dtype: torch.dtype) -> None:
    edit_weights(model, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(dtype)}))
    engine = open_tiny(model)
    assert engine.info.parameters > 10_000
    await engine.aclose()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"page_token": 8}, "page_token"),
        ({"page_tokens": 0}, "page_tokens"),
        ({"page_tokens": "16"}, "page_tokens"),
        ({"threads": -1}, "threads"),
        ({"max_running": True}, "max_running"),
        ({"dtype": "float16"}, "float16"),
        ({"device": "tpu"}, "device"),
        ({"device": "meta"}, "meta"),
        ({"device": "cuda:99"}, "cuda"),
        ({"kv_tokens": 32, "page_tokens": 16}, "kv_tokens"),
    ],
)
def test_an_option_that_is_not_one_is_named(
    model: Path, options: dict[str, Any], named: str
) -> None:
    assert named in refusal(model, **options)


def test_options_have_defaults() -> None:
    assert RuntimeOptions.parse("x", {}) == RuntimeOptions()


def test_eos_ids_come_from_both_files(model: Path) -> None:
    edit(model / "config.json", eos_token_id=3)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert read_config(model).eos_ids == {3, 5, 6}


def test_old_and_new_rope_keys_are_read(model: Path) -> None:
    edit(model / "config.json", rope_parameters=None, rope_theta=777.0)
    assert read_config(model).rope == Rope("default", 777.0, {})
    edit(model / "config.json", rope_scaling={"type": "linear", "factor": 2})
    assert read_config(model).rope == Rope("linear", 777.0, {"factor": 2.0})


def test_a_card_says_where_steps_end(model: Path) -> None:
    (model / "bough.json").write_text(json.dumps({"step_delimiters": ["\n"], "max_step_tokens": 9}))
    engine = open_tiny(model)
    assert (engine.info.step_delimiters, engine.info.max_step_tokens) == (("\n",), 9)
