"""Low-rank adapters in PEFT's file layout, merged into a base model's weights at load.

Source: LoRA, Hu et al., arXiv 2106.09685, section 4.1: W' = W + (alpha / r) B A.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from engines.embedded.config import read_json
from engines.embedded.weights import Tensors
from engines.errors import ModelLoadError
from reward_models.errors import RewardLoadError

_NAME = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight$"
)

_UNSERVED = ("use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
"""Options of PEFT that change the arithmetic."""


def read_file(path: Path) -> Tensors:
    """Tensors of one safetensors file.

    Raises:
        RewardLoadError: Missing or unreadable.
    """
    if not path.exists():
        raise RewardLoadError(f"{path}: the file is missing")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as err:
        raise RewardLoadError(f"{path}: not readable as safetensors: {err}") from err


def merge(base: Tensors, directory: Path) -> Tensors:
    """`base` with the adapter in `directory` merged in, in float32.

    Raises:
        RewardLoadError: The adapter is incomplete or does not fit `base`.
    """
    try:
        config = read_json(directory / "adapter_config.json")
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    for option in _UNSERVED:
        if config.get(option):
            raise RewardLoadError(f"{directory / 'adapter_config.json'}: {option!r} is not served")
    rank, alpha = config.get("r", 0), config.get("lora_alpha", 0)
    if not all(isinstance(n, int | float) and n > 0 for n in (rank, alpha)):
        raise RewardLoadError(
            f"{directory / 'adapter_config.json'}: 'r' and 'lora_alpha' must be numbers above 0"
        )
    path = directory / "adapter_model.safetensors"
    pairs: dict[str, Tensors] = {}
    for name, tensor in read_file(path).items():
        found = _NAME.match(name)
        if found is None:
            raise RewardLoadError(f"{path}: the tensor {name!r} is not a LoRA matrix")
        pairs.setdefault(found["module"], {})[found["part"]] = tensor.float()
    merged = {name: tensor.float() for name, tensor in base.items()}
    for module, pair in pairs.items():
        key = f"{module}.weight"
        if key not in merged or set(pair) != {"A", "B"}:
            raise RewardLoadError(f"{path}: {module!r} needs lora_A, lora_B and a base matrix")
        a, b, rows = tuple(pair["A"].shape), tuple(pair["B"].shape), merged[key].shape
        if a != (rank, rows[-1]) or b != (rows[0], rank):
            raise RewardLoadError(
                f"{path}: {module!r} is {b} times {a} of rank {rank}, "
                f"but the base has {tuple(rows)}"
            )
        merged[key] = merged[key] + float(alpha) / float(rank) * (pair["B"] @ pair["A"])
    return merged
