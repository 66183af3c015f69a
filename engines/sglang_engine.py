"""SGLang over its native HTTP API: token ids in, token ids out, branches shared by RadixAttention.

Every branch is one /generate request with an id of its own, so that it can be aborted alone; what
a branch continues is sent as token ids, and SGLang finds the longest part that it has computed.
Claims are therefore plain values. With several workers a prompt goes to the one that holds most of
it (`engines.sglang_routing`), and siblings wait for the first of them when their prompt is new, so
that it is computed once. What ends a branch is decided here over the ids (`engines.child`); the
server's own stop strings only save tokens.

SGLang reports the logps that it drew from: after temperature, bias and grammar, unless the server's
environment has SGLANG_RETURN_ORIGINAL_LOGPROB=1. Where these are not the model's at temperature 1,
the finished branch is scored once more, which computes its new tokens again as a prompt.

It has no hidden states, no drafters of ours and no tool parsers. Seeds are honoured only by servers
with deterministic inference, which alone declare them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import httpx
import numpy as np
import numpy.typing as npt

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
    Conversation,
    Delta,
    EngineInfo,
    EngineStats,
    Health,
    Message,
    NextTokens,
    Prefix,
    Prompt,
    Sampling,
    TokenIds,
)
from engines.errors import (
    ContextLengthExceeded,
    EngineClosed,
    PromptError,
    UnsupportedByEngine,
)
from engines.sglang_child import Growth, Terms, score
from engines.sglang_model import LocalModel
from engines.sglang_next import NextAsked, next_tokens
from engines.sglang_pool import Pool
from engines.sglang_sampling import check
from engines.token_prefix import TokenPrefix, own_prefix

_Items: TypeAlias = "asyncio.Queue[Delta | Continuation | BaseException]"


class SGLangEngine:
    """The engine.

    Args:
        info: What the workers and the model directory say together.
        model: The model directory.
        pool: The workers.
        client: What they are spoken to with; closed with the engine.
        terms: What all branches share.
    """

    def __init__(
        self,
        info: EngineInfo,
        model: LocalModel,
        pool: Pool,
        client: httpx.AsyncClient,
        terms: Terms,
    ) -> None:
        self.info = info
        self._model = model
        self._table = model.token_bytes
        self._pool = pool
        self._client = client
        self._terms = terms
        self._is_closed = False
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._computed = self._looked_up = self._hit = 0

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """See `Engine.render`."""
        tokenizer = self._model.tokenizer
        return tokenizer.encode(
            tokenizer.render(messages, tools=tools, continue_final=continue_final)
        )

    def encode(self, text: str) -> TokenIds:
        """See `Engine.encode`."""
        return self._model.tokenizer.encode(text)

    def decode(self, ids: TokenIds) -> str:
        """See `Engine.decode`."""
        return b"".join(self._table[token] for token in ids).decode("utf-8", "replace")

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """See `Engine.parse`; there are no tool or reasoning parsers, so everything is content."""
        return Message(content=text)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """See `Engine.open`; nothing is sent before the first `sample`."""
        self._require_open()
        if isinstance(prompt, Conversation):
            raise PromptError("this engine reads token ids; render the conversation first")
        if not prompt:
            raise PromptError("the prompt has no tokens; at least one is needed")
        self._require_ids(prompt)
        if len(prompt) >= self.info.context_tokens:
            raise ContextLengthExceeded(len(prompt), self.info.context_tokens)
        return TokenPrefix(
            self._table, tuple(prompt), len(prompt), tenant=tenant, priority=priority
        )

    async def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """See `Engine.sample`."""
        own = self._own(prefix)
        check(how, self.info, own.position)
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is not None and len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        items: _Items = asyncio.Queue()
        tasks = []
        for at, seed in enumerate(self._seeds(how, n, seeds)):
            growth = Growth(at, own, how, seed, self._terms, self._count)
            tasks.append(asyncio.create_task(growth.run(items.put_nowait)))
            tasks[-1].add_done_callback(lambda task: self._tell(task, items))
        self._tasks.update(tasks)
        remaining = n
        try:
            while remaining:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                remaining -= isinstance(item, Continuation)
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        # An answer in steps is refused now what only its second step could not have.
        check(how, self.info, 1 if how.boundaries else 0)

    @property
    def health(self) -> Health:
        """See `Engine.health`; a worker that is back is used again."""
        if self._is_closed:
            return Health.DEAD
        self._start_watching()  # whoever is asked for health before any request must know, too
        return Health.READY if self._pool.is_alive else Health.AWAY

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """See `Engine.extend`; the new tokens are computed when they are first needed."""
        self._require_open()
        longer: list[Prefix] = []
        for prefix, ids in pairs:
            own = self._own(prefix)
            self._require_ids(ids)
            self._require_room(own, ids)
            longer.append(own.extended(tuple(ids), own.cached_tokens))
        return longer

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """See `Engine.next_logprobs`; one token is drawn per prefix and thrown away."""
        self._require_open()
        if sum(option is not None for option in (ids, mass, top_k)) != 1:
            raise ValueError("exactly one of ids, mass and top_k is needed")
        self._require_ids(ids or ())
        asked = NextAsked(None if ids is None else tuple(ids), mass, top_k)
        owned = [self._own(prefix) for prefix in prefixes]
        return list(
            await asyncio.gather(
                *(next_tokens(self._terms, own, asked, self._count) for own in owned)
            )
        )

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """See `Engine.score`."""
        own = self._own(prefix)
        self._require_ids(ids)
        if not ids:
            return ()
        self._require_room(own, ids)
        logps, _, _ = await score(self._terms, own, tuple(ids), 0, self._count)
        return logps

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Refuses: SGLang returns hidden states of uncached tokens only."""
        raise UnsupportedByEngine(Capability.HIDDEN_STATES, self.info.model_id)

    def stats(self) -> EngineStats:
        """See `Engine.stats`; counted here, but for what waits at the workers."""
        return EngineStats(
            tokens_computed=self._computed,
            tokens_looked_up=self._looked_up,
            tokens_hit=self._hit,
            running=sum(worker.running for worker in self._pool.workers),
            waiting=sum(worker.waiting for worker in self._pool.workers if worker.is_alive),
        )

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self._is_closed = True
        tasks = list(self._tasks) + ([self._watch] if self._watch is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch = None
        for worker in self._pool.workers:
            await worker.settle()
        await self._client.aclose()

    def _start_watching(self) -> None:
        """Look after the workers from now on, if an event loop runs already."""
        if self._watch is None or self._watch.done():
            with suppress(RuntimeError):
                self._watch = asyncio.get_running_loop().create_task(self._pool.watch())

    def _tell(self, task: asyncio.Task[None], items: _Items) -> None:
        """The reader of a branch that failed, whatever the reason, must not wait for it."""
        if task.cancelled():
            items.put_nowait(EngineClosed(f"the engine of {self.info.model_id!r} was closed"))
        elif (failure := task.exception()) is not None:
            items.put_nowait(failure)

    def _seeds(self, how: Sampling, n: int, seeds: Sequence[int] | None) -> Sequence[int | None]:
        if Capability.SEED not in self.info.capabilities:
            return [None] * n
        if seeds is not None:
            return seeds
        root = secrets.randbits(62) if how.seed is None else how.seed
        return [root + at for at in range(n)]

    def _count(self, prompt_tokens: int, cached_tokens: int, drawn_tokens: int) -> None:
        self._looked_up += prompt_tokens
        self._hit += cached_tokens
        self._computed += prompt_tokens - cached_tokens + drawn_tokens

    def _own(self, prefix: Prefix) -> TokenPrefix:
        self._require_open()
        return own_prefix(prefix, self._table)

    def _require_open(self) -> None:
        if self._is_closed:
            raise EngineClosed(f"the engine of model {self.info.model_id!r} was closed")
        self._start_watching()

    def _require_ids(self, ids: Sequence[int]) -> None:
        """One id outside the vocabulary ends the whole worker."""
        size = self.info.vocab_size
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong} is not in 0 … {size - 1}, the vocabulary")

    def _require_room(self, prefix: TokenPrefix, ids: Sequence[int]) -> None:
        size = len(prefix.token_ids) + len(ids)
        if size > self.info.context_tokens:
            raise ContextLengthExceeded(size, self.info.context_tokens)
