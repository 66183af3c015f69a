"""Options of the vLLM engine: ours, and every field of vLLM's own `AsyncEngineArgs`.

On a CPU some defaults differ from vLLM's, all of them only where the option was not given: blocks
of 32 tokens (the smallest its kernels read; the smaller, the more branches share), no compilation,
and 1 GiB of KV cache instead of nearly all memory.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final

from engines.errors import ModelLoadError
from engines.vllm_proposer import PROPOSER
from engines.vllm_worker import ACCESS

PROCESSOR: Final = "engines.vllm_processor:ShapingProcessor"

_DRAFT: Final = ("draft_tokens", "draft_table", "draft_min_prob")
_OURS: Final = (
    "tool_parser",
    "reasoning_parser",
    "step_delimiters",
    "max_step_tokens",
    "drafter",
    *_DRAFT,
)
_FIXED: Final = {
    "model": "it is engine.model",
    "logprobs_mode": "logps are always those of the model itself",
    "runner": "this engine generates",
    "skip_tokenizer_init": "bough needs the tokenizer",
}
"""Fields of vLLM's that have no other value here, and why."""

_CPU_DEFAULTS: Final = {"block_size": 32, "enforce_eager": True}
_CPU_KV_BYTES: Final = 1 << 30
_DRAFT_TOKENS: Final = 8
_MAX_DRAFT_TOKENS: Final = 64
_DRAFT_MIN_PROB: Final = 0.1


@dataclass(frozen=True)
class VllmOptions:
    """What was asked for.

    Attributes:
        engine: For `AsyncEngineArgs`.
        tool_parser: Name in vLLM's registry; without it the engine has no tools.
        reasoning_parser: Name in vLLM's registry.
        step_delimiters: Instead of those in the model's ``bough.json``.
        max_step_tokens: Instead of that in the model's ``bough.json``.
        drafter: Ours, by name; vLLM's own are in ``speculative_config``.
        draft_table: Path of its base table; None is the model's own, if it has one.
        draft_min_prob: Its chains end before their paths are less likely than this.
    """

    engine: Mapping[str, Any]
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    step_delimiters: tuple[str, ...] | None = None
    max_step_tokens: int | None = None
    drafter: str | None = None
    draft_table: str | None = None
    draft_min_prob: float = _DRAFT_MIN_PROB

    @property
    def drafts(self) -> bool:
        """Whether speculative decoding is on, which excludes custom processors."""
        return bool(self.engine.get("speculative_config"))


def read_options(
    where: str, options: Mapping[str, Any], known: frozenset[str], *, is_cpu: bool
) -> VllmOptions:
    """Check names, and fill in what bough needs.

    Args:
        where: The model, for messages.
        options: As set.
        known: Fields of `AsyncEngineArgs`.
        is_cpu: Whether vLLM will run on a CPU.

    Raises:
        ModelLoadError: An unknown name, with near matches, or a value that is taken.
    """
    for name in options:
        if name in _FIXED:
            raise ModelLoadError(where, f"engine option {name} cannot be set: {_FIXED[name]}")
        if name not in known and name not in _OURS:
            near = get_close_matches(name, sorted(known.union(_OURS)), n=3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise ModelLoadError(where, f"vLLM has no option {name!r}{hint}")
    chosen = {name: value for name, value in options.items() if name in known}
    chosen |= _drafting(where, options)
    if chosen.get("speculative_config") and (is_cpu or options.get("drafter")):
        if chosen.get("worker_extension_cls"):
            raise ModelLoadError(
                where, "engine option worker_extension_cls is bough's own while it drafts: drop it"
            )
        chosen["worker_extension_cls"] = ACCESS
    for name, value in _defaults(chosen, is_cpu).items():
        chosen.setdefault(name, value)
    if not chosen.get("speculative_config"):
        chosen["logits_processors"] = [PROCESSOR, *(chosen.get("logits_processors") or ())]
    delimiters = options.get("step_delimiters")
    return VllmOptions(
        engine=chosen,
        tool_parser=options.get("tool_parser"),
        reasoning_parser=options.get("reasoning_parser"),
        step_delimiters=None if delimiters is None else tuple(delimiters),
        max_step_tokens=options.get("max_step_tokens"),
        drafter=options.get("drafter"),
        draft_table=options.get("draft_table"),
        draft_min_prob=options.get("draft_min_prob", _DRAFT_MIN_PROB),
    )


def _drafting(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a drafter of ours makes of vLLM's options."""

    def refuse(why: str) -> ModelLoadError:
        return ModelLoadError(where, f"engine option {why}")

    if options.get("drafter") is None:
        for name in _DRAFT:
            if name in options:
                raise refuse(f"{name} is for a drafter of ours: set drafter, to 'adaptive' say")
        return {}
    if options.get("speculative_config"):
        raise refuse("speculative_config cannot be set beside drafter, which sets it: keep one")
    size = options.get("draft_tokens", _DRAFT_TOKENS)
    if type(size) is not int or not 1 <= size <= _MAX_DRAFT_TOKENS:
        raise refuse(f"draft_tokens must be a number in 1 … {_MAX_DRAFT_TOKENS}, not {size!r}")
    least = options.get("draft_min_prob", _DRAFT_MIN_PROB)
    if type(least) not in (int, float) or not 0 < least <= 1:
        raise refuse(f"draft_min_prob must be above 0 and at most 1, not {least!r}")
    how = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": size}
    return {"speculative_config": how}


def _defaults(chosen: Mapping[str, Any], is_cpu: bool) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "max_logprobs": -1,  # no cap: a nucleus is as large as it is
        "disable_log_stats": True,
    }
    if chosen.get("speculative_config"):
        defaults["per_request_spec_decode_metrics"] = "summary"
    if is_cpu:
        defaults |= _CPU_DEFAULTS
        if "gpu_memory_utilization" not in chosen:
            defaults["kv_cache_memory_bytes"] = _CPU_KV_BYTES
    return defaults


@contextmanager
def child_environment(options: VllmOptions, *, is_cpu: bool) -> Iterator[None]:
    """The environment that vLLM's processes are started in; ours is as before afterwards.

    On a CPU vLLM compiles parts of its sampler at the first request, `enforce_eager` or not, which
    takes a C++ compiler and most of a minute. And it replaces the executor that shares the engine
    core's process by one with a process of its own, unless told that it runs alone.
    """
    wanted: dict[str, str] = {}
    if is_cpu:
        wanted["TORCHDYNAMO_DISABLE"] = "1"
        if options.engine.get("distributed_executor_backend") == "uni":
            wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def ending_together() -> Iterator[None]:
    """While vLLM starts, SIGTERM ends its processes as well as this one.

    It would end this one on the spot, and leave an engine core behind that waits for it for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)  # an exception, so that vLLM cleans up


def field_names(arguments: type) -> frozenset[str]:
    """Fields of a dataclass."""
    return frozenset(field.name for field in fields(arguments))
