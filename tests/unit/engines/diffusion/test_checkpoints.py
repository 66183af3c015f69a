"""Published layouts: tiny random checkpoints against plain formulas, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engines.diffusion.denoiser import read_checkpoint
from engines.errors import ModelLoadError
from tests.diffusion_models import CONFIGS, MASK, reference_logits, tiny_tensors, write_tiny

CPU = torch.device("cpu")
FAMILIES = tuple(CONFIGS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 0.4)])
def test_logits_are_those_of_the_formulas(
    tmp_path: Path, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    checkpoint = read_checkpoint(write_tiny(tmp_path, family), dtype, CPU)
    rows = [[5, 6, MASK, 8, MASK, 250, MASK], [70, MASK, MASK, 71]]
    ids = torch.full((2, 7), 17)  # any id pads
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    asked = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 2, 6, 0, 1, 3])
    logits = checkpoint.network.logits(ids, [7, 4], *asked).double()
    expected = [reference_logits(family, tiny_tensors(family), row) for row in rows]
    for got, row, spot in zip(logits, *asked, strict=True):
        want = expected[row][spot]
        assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_or_padded_or_batched_is_the_same(tmp_path: Path, family: str) -> None:
    network = read_checkpoint(write_tiny(tmp_path, family), torch.float32, CPU).network
    short = torch.tensor([[3, MASK, 4, MASK]])
    alone = network.logits(short, [4], torch.tensor([0, 0]), torch.tensor([1, 3]))
    both = torch.cat([torch.full((1, 9), 40), torch.nn.functional.pad(short, (0, 5), value=99)])
    beside = network.logits(both, [9, 4], torch.tensor([1, 1]), torch.tensor([1, 3]))
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_needed_by_name_and_shape(tmp_path: Path, family: str) -> None:
    directory = write_tiny(tmp_path, family)
    tensors = tiny_tensors(family)
    path = directory / "model.safetensors"
    for name in tensors:
        if name.endswith("inv_freq"):
            continue
        save_file({key: value for key, value in tensors.items() if key != name}, path)
        with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")):
            read_checkpoint(directory, torch.float32, CPU)
        wrong = {**tensors, name: torch.zeros(7, *tensors[name].shape[1:])}
        save_file(wrong, path)
        with pytest.raises(ModelLoadError, match=f"{name}.*shape"):
            read_checkpoint(directory, torch.float32, CPU)
    save_file({**tensors, "model.extra.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelLoadError, match=r"model\.extra\.weight"):
        read_checkpoint(directory, torch.float32, CPU)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, path)
    with pytest.raises(ModelLoadError, match="NaN"):
        read_checkpoint(directory, torch.float32, CPU)


NEEDED = {
    "llada": ("d_model", "n_layers", "n_heads", "vocab_size", "max_sequence_length"),
    "dream": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "mdlm": ("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads"),
}


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family, keys in NEEDED.items() for key in keys]
)
def test_needed_keys_are_named(tmp_path: Path, family: str, key: str) -> None:
    directory = write_tiny(tmp_path, family)
    config = dict(CONFIGS[family])
    del config[key]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=f"{key!r} is missing"):
        read_checkpoint(directory, torch.float32, CPU)
    (directory / "config.json").write_text(json.dumps({**config, key: "12"}))
    with pytest.raises(ModelLoadError, match=f"{key!r} must be"):
        read_checkpoint(directory, torch.float32, CPU)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llada", "block_type", "sequential"),
        ("llada", "include_bias", True),
        ("llada", "alibi", True),
        ("llada", "activation_type", "swiglu"),
        ("llada", "block_group_size", 2),
        ("dream", "hidden_act", "gelu"),
        ("dream", "rope_scaling", {"factor": 4.0}),
        ("dream", "use_sliding_window", True),
        ("mdlm", "time_conditioning", True),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, family: str, key: str, value: object
) -> None:
    directory = write_tiny(tmp_path, family, **{key: value})
    with pytest.raises(ModelLoadError, match=key):
        read_checkpoint(directory, torch.float32, CPU)


def test_other_models_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        read_checkpoint(tmp_path / "absent", torch.float32, CPU)
    write_tiny(tmp_path, "llada", model_type="llama")
    with pytest.raises(ModelLoadError, match="dream, llada, mdlm"):
        read_checkpoint(tmp_path, torch.float32, CPU)


@pytest.mark.parametrize(
    ("family", "mask_id", "published"), [("llada", 126336, 126464), ("dream", 151666, 152064)]
)
def test_masks_of_the_published_vocabularies_are_known(
    tmp_path: Path, family: str, mask_id: int, published: int
) -> None:
    """A config.json without the mask takes the published id, and only in such a vocabulary."""
    directory = write_tiny(tmp_path, family, mask_token_id=None)
    with pytest.raises(ModelLoadError, match=f"mask_token_id.*{mask_id}"):
        read_checkpoint(directory, torch.float32, CPU)
    assert mask_id < published


def test_what_the_families_say_of_themselves(tmp_path: Path) -> None:
    read = {
        family: read_checkpoint(write_tiny(tmp_path / family, family), torch.float32, CPU)
        for family in FAMILIES
    }
    assert [one.mask_id for one in read.values()] == [MASK, MASK, MASK]
    assert [one.kernel for one in read.values()] == ["low_confidence", "entropy", "mdlm"]
    assert read["dream"].max_length == 2048  # its authors' context, not that of its ancestor
    assert read["mdlm"].max_length == 96
    assert read["mdlm"].parameters == sum(t.numel() for t in tiny_tensors("mdlm").values())
