"""One `AsyncLLM` and what bough asks of it. The only file that calls vLLM's engine.

vLLM's engine core is a process of its own. When it dies every request in flight and every later one
fails within a moment, and nothing brings it back: the backend is then dead for good.

An `AsyncLLM` belongs to the event loop that it was first used on.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from engines.base import Constraint, EngineStats, Health, TokenIds, TopLogps
from engines.drafters.errors import DrafterError
from engines.drafters.shelf import TABLE_FILE
from engines.errors import (
    EngineClosed,
    EngineError,
    EngineOverloaded,
    ModelLoadError,
    UnsupportedByEngine,
)
from engines.token_prefix import TokenPrefix
from engines.vllm_chat import read_tokenizer
from engines.vllm_drafts import Drafts, root_of
from engines.vllm_options import (
    VllmOptions,
    child_environment,
    ending_together,
    field_names,
    read_options,
)
from engines.vllm_proposer import Plan
from engines.vllm_stats import Drafting, Meter
from engines.vllm_worker import ACCESS

_CPU_GRACE_S: Final = 1.0
_RETRY_AFTER_S: Final = 1  # vLLM does not say when its queue will be shorter


@dataclass(frozen=True)
class Drawn:
    """What a request gained since its last output.

    Attributes:
        token_ids: New tokens.
        logps: One per token, nats, temperature 1, nothing masked; empty where not asked for.
        tops: Alternatives of each, likeliest first; as many as were asked for.
        prompt_logps: Of each prompt token but the first, where they were asked for.
        cached_tokens: Prompt tokens found in the cache.
        reason: Why the request ended; None while it goes on.
        drafted: Tokens that were proposed for it, told at its end; 0 where it was aborted.
        accepted: Of these, those that the model drew as well.
    """

    token_ids: Sequence[int]
    logps: Sequence[float]
    tops: Sequence[TopLogps]
    prompt_logps: tuple[float, ...]
    cached_tokens: int
    reason: str | None
    drafted: int = 0
    accepted: int = 0


class VllmBackend:
    """Requests by token ids, to their end or to the closing of the iterator.

    Args:
        model_id: The id on the wire, for messages.
        where: The model, for messages.
        options: As `read_options` made them.

    Raises:
        ModelLoadError: vLLM does not start.
    """

    def __init__(self, model_id: str, where: str, options: VllmOptions) -> None:
        self._model_id = model_id
        self._meter = Meter()
        self._numbers = itertools.count()
        self._live: set[str] = set()
        self._is_closed = False
        self._is_cpu = current_platform.is_cpu()
        try:
            with ending_together(), child_environment(options, is_cpu=self._is_cpu):
                arguments = AsyncEngineArgs(model=where, **options.engine)
                self.config: Any = arguments.create_engine_config()
                self._plan_drafts(where, options)
                self._llm: Any = AsyncLLM.from_vllm_config(
                    self.config, stat_loggers=[self._meter.factory()], disable_log_stats=True
                )
        except (VLLMError, ValueError, TypeError, RuntimeError, OSError, KeyError) as err:
            raise ModelLoadError(where, f"vLLM does not start with it: {err}") from err
        self._meter.num_pages = self.config.cache_config.num_gpu_blocks or 0
        self._meter.page_tokens = self.config.cache_config.block_size
        self._num_ranks = self.config.parallel_config.data_parallel_size
        self.renderer: Any = self._llm.renderer
        has_access = options.engine.get("worker_extension_cls") == ACCESS
        self.drafts = Drafts(self._llm, model_id, options.drafter, has_access=has_access)

    @property
    def health(self) -> Health:
        """Dead once it was closed or an engine core died."""
        return Health.DEAD if self._is_closed or self._llm.errored else Health.READY

    @property
    def num_preempted(self) -> int:
        """Requests so far that lost their KV to others and were computed again."""
        return self._meter.num_preempted

    @property
    def drafting(self) -> Drafting:
        """What speculative decoding did so far."""
        return self._meter.drafting

    def require_open(self) -> None:
        """Raise EngineClosed unless requests can be answered."""
        if self.health is Health.DEAD:
            raise EngineClosed(f"the vLLM engine of model {self._model_id!r} is gone")

    def check(self, params: dict[str, Any], constraint: Constraint | None) -> None:
        """Refuse now what vLLM would refuse in the middle of `run`: a broken grammar, say.

        Args:
            params: Of `SamplingParams`.
            constraint: Read by vLLM's own parsers, which takes some milliseconds.

        Raises:
            UnsupportedByEngine: vLLM refuses the parameters.
        """
        config = self.config
        try:
            SamplingParams(structured_outputs=_grammar(constraint), **params).verify(
                config.model_config,
                config.speculative_config,
                config.structured_outputs_config,
                self.renderer.get_tokenizer(),
            )
        except (VLLMClientError, ValueError) as err:
            raise self._refused(err, constraint) from err

    def stats(self) -> EngineStats:
        """Gauges and counters; without a request nothing is claimed, whatever was last told."""
        if not self._live:
            self._meter.nothing_runs()
        return self._meter.stats()

    async def run(
        self,
        prefix: TokenPrefix,
        token_ids: TokenIds,
        params: dict[str, Any],
        *,
        constraint: Constraint | None = None,
        is_final_only: bool = False,
    ) -> AsyncGenerator[Drawn]:
        """One request; closing the iterator aborts it.

        Args:
            prefix: Whose tenant, priority and prompt it has.
            token_ids: What is continued.
            params: Of `SamplingParams`.
            constraint: What its output must look like.
            is_final_only: Whether everything may come at once.

        Raises:
            EngineClosed: The engine is gone.
            EngineOverloaded: vLLM's own queue is full.
            UnsupportedByEngine: vLLM refuses the parameters.
        """
        self.require_open()
        number = f"{self._model_id}-{next(self._numbers)}"
        self._live.add(number)
        kind = RequestOutputKind.FINAL_ONLY if is_final_only else RequestOutputKind.DELTA
        how = self.drafts.labelled(prefix, params)
        try:
            with self.drafts.running():
                await self.drafts.begin()
                stream = self._llm.generate(
                    tokens_input(list(token_ids), cache_salt=prefix.tenant or None),
                    SamplingParams(
                        output_kind=kind, structured_outputs=_grammar(constraint), **how
                    ),
                    number,
                    priority=-prefix.priority,  # vLLM runs the lowest first, bough the highest
                    data_parallel_rank=self._rank(prefix),
                )
                async with aclosing(stream):
                    async for output in stream:
                        yield _drawn(output, params["logprobs"])
        except EngineDeadError as err:
            raise EngineClosed(f"the vLLM engine of model {self._model_id!r} died") from err
        except GracefulHTTPError as err:
            raise EngineOverloaded(self._model_id, _RETRY_AFTER_S) from err
        except VLLMClientError as err:
            raise self._refused(err, constraint) from err
        except EngineGenerateError as err:
            raise EngineError(f"vLLM failed on a request: {err.__cause__}") from err
        finally:
            self._live.discard(number)
        if self._is_closed:
            raise EngineClosed(f"the vLLM engine of model {self._model_id!r} was closed")

    async def aclose(self) -> None:
        """Abort what runs, end vLLM's processes; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._live and not self._llm.errored:
            await self._llm.abort(list(self._live))
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """End vLLM's processes; what runs is not told."""
        self._is_closed = True
        # On a CPU the core does not end by itself, and is waited for until it is killed.
        self._llm.shutdown(_CPU_GRACE_S if self._is_cpu else None)

    def _refused(self, err: Exception, constraint: Constraint | None) -> UnsupportedByEngine:
        name = getattr(err, "parameter", None) or ("constraint" if constraint else "sampling")
        return UnsupportedByEngine(name, self._model_id, f"vLLM says: {err}")

    def _rank(self, prefix: TokenPrefix) -> int | None:
        """Branches of one prompt go where its blocks are: ranks share no cache."""
        if self._num_ranks <= 1:
            return None
        root = array("q", root_of(prefix))
        return zlib.crc32(root.tobytes()) % int(self._num_ranks)

    def _plan_drafts(self, where: str, options: VllmOptions) -> None:
        """Tell vLLM's processes what to draft by, once it is known to work.

        Raises:
            ModelLoadError: There is no such drafter, or its table is damaged or of another model.
        """
        if options.drafter is None:
            return
        config = self.config.model_config
        own = Path(where) / TABLE_FILE
        table = options.draft_table or (str(own) if own.exists() else None)
        tokenizer = read_tokenizer(config.tokenizer, config.tokenizer_revision)
        plan = Plan(self._model_id, options.drafter, tokenizer.hash, table, options.draft_min_prob)
        try:
            plan.open(config.get_vocab_size())
        except (DrafterError, UnsupportedByEngine) as err:
            raise ModelLoadError(where, f"engine options of drafts: {err}") from err
        self.config.additional_config |= plan.to_config()


def launch(model_id: str, model: str, options: dict[str, Any]) -> tuple[VllmBackend, VllmOptions]:
    """Start vLLM.

    Raises:
        ModelLoadError: An option or the model cannot be served.
    """
    chosen = read_options(
        model, options, field_names(AsyncEngineArgs), is_cpu=current_platform.is_cpu()
    )
    return VllmBackend(model_id, model, chosen), chosen


def _grammar(constraint: Constraint | None) -> Any:
    if constraint is None:
        return None
    schema = constraint.json_schema
    return StructuredOutputsParams(
        json=None if schema is None else dict(schema),
        regex=constraint.regex,
        grammar=constraint.grammar,
    )


def _drawn(output: Any, num_tops: int | None) -> Drawn:
    completion = output.outputs[0]
    flat = completion.logprobs
    logps: list[float] = []
    tops: list[TopLogps] = []
    if flat is not None:
        logps = [flat.logprobs[start] for start in flat.start_indices]
        tops = _tops(flat, num_tops) if num_tops else []
    prompt = output.prompt_logprobs
    drafts = completion.spec_decode_metrics  # at the request's end only
    return Drawn(
        token_ids=completion.token_ids,
        logps=logps,
        tops=tops,
        prompt_logps=(
            tuple(prompt.logprobs[start] for start in prompt.start_indices[1:]) if prompt else ()
        ),
        cached_tokens=output.num_cached_tokens or 0,
        reason=completion.finish_reason,
        drafted=drafts.num_draft_tokens if drafts else 0,
        accepted=sum(j * count for j, count in enumerate(drafts.histogram)) if drafts else 0,
    )


def _tops(flat: Any, count: int) -> list[TopLogps]:
    """The likeliest tokens of every position.

    vLLM lists the drawn token and then the likeliest, which may name it again; where outputs were
    joined because the reader was slow, it names every token once.
    """
    tops = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        listed = list(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
        if len(listed) > count and listed[0] in listed[1:]:
            likeliest = listed[1:]
        else:
            likeliest = sorted(listed, key=lambda entry: -entry[1])
        tops.append(tuple(likeliest[:count]))
    return tops
