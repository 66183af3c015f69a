"""One model with its cache, its queue and its thread; generators and judges stand on it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from engines.base import Continuation, EngineStats, TokenIds
from engines.embedded.accounting import Ledger
from engines.embedded.claims import Claims, PageClaim
from engines.embedded.compute import compute_thread
from engines.embedded.config import DecoderConfig, read_config
from engines.embedded.draft_budget import DraftBudget
from engines.embedded.drafting import Drafting
from engines.embedded.jobs import ReadJob, ReadRequest, ReadResult
from engines.embedded.model import Decoder
from engines.embedded.pages import KvPool
from engines.embedded.schedule import Scheduler
from engines.embedded.sequence import Branch, Order, Reading
from engines.embedded.tokenizer import ChatTokenizer
from engines.embedded.weights import Tensors, read_weights
from engines.embedded.worker import Worker
from engines.errors import (
    CapacityExceeded,
    ContextLengthExceeded,
    EngineClosed,
    ModelLoadError,
    PromptError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class RuntimeOptions:
    """Knobs of a runtime; every one may be set as an engine option of the same name.

    Attributes:
        device: cpu, cuda or cuda:N.
        dtype: float32 or bfloat16.
        page_tokens: Tokens in a KV page.
        kv_tokens: Tokens that the KV pool holds.
        chunk_tokens: The most prompt tokens in one forward pass.
        max_running: The most sequences in a batch.
        ahead_tokens: Generated tokens that a sequence sets pages aside for.
        threads: Compute threads of torch, for the whole process; 0 leaves torch's choice.
        draft_nodes: The most drafted tokens verified in a step for a branch.
        draft_table: Where drafters start from, made by `bough drafts build`; without one, the
            model directory's own drafts.npz, if there is one.
    """

    device: str = "cpu"
    dtype: str = "float32"
    page_tokens: int = 16
    kv_tokens: int = 65536
    chunk_tokens: int = 1024
    max_running: int = 512
    ahead_tokens: int = 256
    threads: int = 0
    draft_nodes: int = 32
    draft_table: str = ""

    @classmethod
    def parse(cls, where: str, options: Mapping[str, Any]) -> RuntimeOptions:
        """Check names, types and bounds.

        Raises:
            ModelLoadError: An option is unknown or out of bounds.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        for name, value in options.items():
            if name not in types:
                known = ", ".join(sorted(types))
                raise ModelLoadError(where, f"unknown engine option {name!r}; known are {known}")
            if type(value) is not types[name]:
                raise ModelLoadError(
                    where, f"engine option {name!r} must be {types[name].__name__}, not {value!r}"
                )
            if isinstance(value, int) and value < (name != "threads"):
                raise ModelLoadError(where, f"engine option {name!r} must be positive, not {value}")
        parsed = cls(**options)
        if parsed.dtype not in ("float32", "bfloat16"):
            raise ModelLoadError(
                where, f"dtype {parsed.dtype!r} is not served; float32 and bfloat16 are"
            )
        return parsed


class Runtime:
    """A decoder that runs sequences over its own paged cache.

    Args:
        directory: A Hugging Face model directory.
        options: Knobs.
        tensors: Weights to use instead of the directory's files.
        finish_branch: Makes a branch's Continuation; only generators need it.

    Raises:
        ModelLoadError: The directory cannot be served.
    """

    def __init__(
        self,
        directory: Path,
        options: RuntimeOptions,
        *,
        tensors: Tensors | None = None,
        finish_branch: Callable[[Branch, int], Continuation] | None = None,
    ) -> None:
        self.options = options
        self.config: DecoderConfig = read_config(directory)
        self.tokenizer = ChatTokenizer(directory)
        if self.tokenizer.size > self.config.vocab_size:
            raise ModelLoadError(
                directory / "tokenizer.json",
                f"{self.tokenizer.size} tokens, but config.json has vocab_size "
                f"{self.config.vocab_size}",
            )
        device = _device(directory, options.device)
        compute = self._compute = compute_thread(device.type)
        self.decoder, self.pool = compute.call(lambda: self._load(directory, device, tensors))
        pages = self.pool.num_pages
        config = self.config
        self.ledger = Ledger(pages, options.page_tokens)
        self.claims = Claims(self.ledger)
        # A sequence alone in the pool must always be able to finish; one page is spare for a copy.
        self.context_tokens = min(config.context_tokens, (pages - 2) * options.page_tokens)
        if self.context_tokens < 2:
            raise ModelLoadError(
                directory,
                f"engine option kv_tokens {options.kv_tokens} is too small for pages of "
                f"{options.page_tokens} tokens; at least {4 * options.page_tokens} are needed",
            )
        # Rows of the logits beyond the tokenizer's vocabulary decode to nothing.
        padding = config.vocab_size - self.tokenizer.size
        self.token_bytes = [*self.tokenizer.token_bytes, *[b""] * padding]
        self._scheduler = Scheduler(
            self.ledger,
            chunk_tokens=options.chunk_tokens,
            max_running=options.max_running,
            ahead_tokens=options.ahead_tokens,
            reclaim=self.claims.reclaim,
        )
        self._serial = itertools.count()
        self._looked_up = 0
        self._hit = 0
        self.worker = Worker(
            self.decoder,
            self.pool,
            self.ledger,
            self._scheduler,
            context_tokens=self.context_tokens,
            finish_branch=finish_branch or _no_branches,
            compute=compute,
            drafting=Drafting(DraftBudget(options.draft_nodes), self.config.vocab_size),
        )

    def _load(
        self, directory: Path, device: torch.device, tensors: Tensors | None
    ) -> tuple[Decoder, KvPool]:
        """Weights and cache; on the compute thread, because loading starts parallel regions."""
        options, config = self.options, self.config
        if options.threads:
            torch.set_num_threads(options.threads)
        dtype: torch.dtype = getattr(torch, options.dtype)
        weights = read_weights(directory, config, dtype=dtype, device=device, tensors=tensors)
        pool = KvPool(
            config.layers,
            -(-options.kv_tokens // options.page_tokens),
            options.page_tokens,
            config.kv_heads,
            config.head_dim,
            dtype=dtype,
            device=device,
        )
        return Decoder(config, weights), pool

    def order(self, priority: int, age: int | None = None) -> Order:
        """The next sequence's place in the queue.

        Args:
            priority: The larger goes first.
            age: Of the claim that it continues, the older goes first; None for one that is new.
        """
        serial = next(self._serial)
        return (-priority, serial if age is None else age, serial)

    def claim(self, tokens: TokenIds, *, tenant: str, response_start: int) -> PageClaim:
        """Claim `tokens`, with what is cached of them.

        Raises:
            PromptError: An id is not in the vocabulary.
            ContextLengthExceeded: No room for one new token.
            CapacityExceeded: The pool could never hold them.
            EngineClosed: The runtime is closed.
        """
        self.require_open()
        self.require_ids(tokens)
        if not tokens:
            raise PromptError("the prompt is empty; at least one token is needed")
        if len(tokens) >= self.config.context_tokens:
            raise ContextLengthExceeded(len(tokens), self.config.context_tokens)
        if len(tokens) >= self.context_tokens:
            raise CapacityExceeded(
                f"{len(tokens)} tokens do not fit a KV pool of {self.options.kv_tokens}; "
                "raise engine option kv_tokens"
            )
        with self.ledger.lock:
            match = self.ledger.trie.match(tenant, tokens)
            leaf = match.leaf
            self._looked_up += len(tokens)
            self._hit += match.length
            self.ledger.lock_path(leaf)
            return PageClaim(
                self.claims,
                tenant,
                tokens,
                response_start,
                self.token_bytes,
                leaf,
                match.length,
                next(self._serial),
            )

    async def read(self, requests: Sequence[ReadRequest]) -> list[ReadResult]:
        """Run sequences for their hidden states; results in the order of `requests`.

        Raises:
            PromptError: An id is not in the vocabulary.
            ContextLengthExceeded: A sequence is longer than the context.
            EngineClosed: The runtime is closed.
            EngineError: The batch failed.
        """
        if not requests:
            return []
        for request in requests:  # one that cannot run would take everybody's batch with it
            self.require_ids(request.tokens)
            if len(request.tokens) > self.context_tokens:
                raise ContextLengthExceeded(len(request.tokens), self.context_tokens)
        job = ReadJob()
        job.results = [ReadResult(None, 0)] * len(requests)
        readings = [
            Reading(
                r.tenant,
                r.tokens,
                r.read_from,
                r.finish,
                job,
                i,
                self.order(r.priority, r.age),
                r.claim,
            )
            for i, r in enumerate(requests)
        ]
        self.worker.submit(job, readings)
        try:
            while job.unfinished and job.error is None:
                await job.news()
        finally:
            await self.worker.cancel(job)
        if job.error is not None:
            raise job.error
        return job.results

    async def when_idle(self, function: Callable[[], T]) -> T:
        """Run `function` on the compute thread once there is nothing else to do."""
        return await asyncio.wrap_future(self._compute.call_when_idle(function))

    def require_ids(self, tokens: Sequence[int]) -> None:
        """Raise PromptError unless all `tokens` are in the vocabulary."""
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise PromptError(f"token ids must be in 0 … {self.config.vocab_size - 1}")

    def require_open(self) -> None:
        """Raise EngineClosed when the worker has stopped."""
        if self.worker.is_closed:
            raise EngineClosed("the engine is closed")

    def stats(self) -> EngineStats:
        """Gauges and counters now."""
        with self.ledger.lock:
            counts = self.ledger.counts()
            return EngineStats(
                pages_free=counts.free,
                pages_cached=counts.cached,
                pages_claimed=counts.claimed,
                page_tokens=self.options.page_tokens,
                tokens_computed=self.worker.tokens_computed,
                tokens_looked_up=self._looked_up,
                tokens_hit=self._hit,
                running=len(self._scheduler.running),
                waiting=self._scheduler.num_waiting,
            )

    async def aclose(self) -> None:
        """Stop the thread; idempotent."""
        await asyncio.to_thread(self.worker.close)
        with self.ledger.lock:
            self.claims.reclaim(self.ledger.num_pages + 1)


def _no_branches(branch: Branch, kept: int) -> Continuation:
    raise TypeError("this runtime only reads; it was built without finish_branch")


def _device(directory: Path, name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ModelLoadError(directory, f"engine option device: {err}") from err
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(directory, f"device {name!r} is not served; cpu and cuda are")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            directory, f"device {name!r} was asked for, but torch finds no CUDA device"
        )
    return device
