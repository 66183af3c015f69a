"""Opens `engines.vllm_engine.VllmEngine`; vLLM is imported then, not before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines.base import Capability, EngineInfo
from engines.errors import ModelLoadError
from engines.vllm_engine import VllmEngine


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> VllmEngine:
    """Start vLLM on `model`, a directory or a name that vLLM can resolve.

    Raises:
        ModelLoadError: vLLM is not installed, or an option or the model cannot be served.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as err:
        raise ModelLoadError(
            model or model_id,
            "vLLM is not installed here: `make setup-vllm` builds an environment for CPUs, "
            f"`pip install '.[vllm]'` in a checkout one for GPUs ({err})",
        ) from err
    from engines.vllm_backend import launch
    from engines.vllm_chat import VllmChat, read_tokenizer

    backend, chosen = launch(model_id, model, dict(options))
    with ExitStack() as started:
        started.callback(backend.shutdown)
        config = backend.config.model_config
        tokenizer = read_tokenizer(config.tokenizer, config.tokenizer_revision)
        chat = VllmChat(model_id, backend.renderer, tokenizer, chosen)
        size = config.get_vocab_size()
        steps = _step_hints(Path(model))
        info = EngineInfo(
            model_id=model_id,
            context_tokens=config.max_model_len,
            vocab_size=size,
            eos_ids=_eos_ids(config),
            tokenizer_hash=tokenizer.hash,
            parameters=_num_parameters(Path(model)),
            capabilities=_capabilities(
                has_tools=chat.has_tools, has_drafter=chosen.drafter is not None
            ),
            step_delimiters=chosen.step_delimiters
            or tuple(steps.get("step_delimiters", ("\n\n",))),
            max_step_tokens=chosen.max_step_tokens or int(steps.get("max_step_tokens", 256)),
        )
        started.pop_all()
    # a vocabulary may be padded: such ids mean nothing, but may be drawn
    token_bytes = [*tokenizer.token_bytes, *[b""] * (size - len(tokenizer.token_bytes))]
    return VllmEngine(
        info,
        backend,
        chat,
        token_bytes,
        tokenizer.encode,
        drafts=chosen.drafts,
        drafter=chosen.drafter,
    )


def _capabilities(*, has_tools: bool, has_drafter: bool = False) -> frozenset[Capability]:
    able = {
        Capability.TOKENS,
        Capability.LOGPROBS,
        Capability.NEXT_LOGPROBS,
        Capability.SCHEDULE,
        Capability.CONSTRAINT,
        Capability.SEED,
    }
    if has_tools:
        able.add(Capability.TOOLS)
    if has_drafter:
        able.add(Capability.DRAFTER)
        # What is drafted depends on what was learnt, and random numbers are used up by drafts.
        able.remove(Capability.SEED)
    return frozenset(able)


def _eos_ids(config: Any) -> frozenset[int]:
    """As the model's own files name them."""
    found: set[int] = set()
    for value in (
        getattr(config.hf_text_config, "eos_token_id", None),
        config.try_get_generation_config().get("eos_token_id"),
    ):
        if value is not None:
            found.update(value if isinstance(value, list) else [value])
    return frozenset(found)


def _num_parameters(directory: Path) -> int:
    """Weights in a directory's safetensors; 0 for a model that lies elsewhere."""
    from safetensors import safe_open

    total = 0
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="np") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def _step_hints(directory: Path) -> Mapping[str, Any]:
    path = directory / "bough.json"
    if not path.is_file():
        return {}
    try:
        hints: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise ModelLoadError(path, f"not readable as JSON: {err}") from err
    return hints
