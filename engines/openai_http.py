"""Any server with OpenAI's schema as an engine: vllm serve, SGLang, Ollama, llama.cpp, a vendor.

Prompts and answers are text here, and what the upstream cannot do is declared, not made up: no
token ids, no next-token distributions, no hidden states. Whole answers come from plain chat
(CHAT_ONLY); where an unfinished answer can be gone on with, steps come too (CONTINUE_TEXT), one
request per step and child, so that each child has its own seed. The upstream's prefix cache, if it
has one, is what branches share.

What it does not do: tools, grammars, images, and the reasoning that some servers send beside the
answer, which is not part of the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

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
from engines.openai_child import TextChild
from engines.openai_discovery import discover
from engines.openai_names import Lexicon
from engines.openai_options import parse
from engines.openai_prefix import PromptCount, TextPrefix, own_prefix
from engines.openai_request import Bound, Wire, body_of, bound_of, refuse_unsendable, stops_sent
from engines.openai_upstream import Upstream

_Items: TypeAlias = "asyncio.Queue[Delta | Continuation | BaseException]"


class OpenAIEngine:
    """The engine. Nothing is asked before the first `sample`; see `open_engine`.

    Args:
        info: What the upstream is, as far as it is known.
        upstream: Who answers.
        wire: How it is spoken to.
        max_concurrency: Requests open at once.
    """

    def __init__(
        self, info: EngineInfo, upstream: Upstream, wire: Wire, *, max_concurrency: int = 64
    ) -> None:
        self.info = info
        self._upstream = upstream
        self._wire = wire
        self._places = asyncio.Semaphore(max_concurrency)
        self._lexicon = Lexicon()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._running = self._waiting = 0
        self._computed = self._looked_up = self._hit = 0

    @property
    def health(self) -> Health:
        """Away from when the upstream was lost until it has answered again."""
        if self._is_closed:
            return Health.DEAD
        return Health.READY if self._upstream.is_here else Health.AWAY

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """The conversation as it is; the upstream has the template.

        Raises:
            PromptError: No messages, or a last one that cannot be continued.
            UnsupportedByEngine: Tools, or a continuation that the upstream is not known to do.
        """
        if tools:
            raise self._unsupported(Capability.TOOLS, "send the request without tools")
        if not messages:
            raise PromptError("there are no messages to answer; send at least one")
        if not continue_final:
            return Conversation(tuple(messages))
        begun = messages[-1].get("content")
        if messages[-1].get("role") != "assistant" or not isinstance(begun, str):
            raise PromptError("only an assistant's text can be continued")
        if not self._wire.can_continue:
            raise self._unsupported(Capability.CONTINUE_TEXT, "leave the assistant's part out")
        return Conversation(tuple(messages[:-1]), begun)

    def encode(self, text: str) -> TokenIds:
        """Refuses: the upstream's tokens are not known here."""
        raise self._unsupported(Capability.TOKENS, "it reads text only")

    def decode(self, ids: TokenIds) -> str:
        """Text of tokens that the upstream has named in answers with `logprobs`."""
        return self._lexicon.decode(ids).decode("utf-8", "replace")

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """The text is the content; the upstream has parsed it."""
        return Message(content=text)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """Claim a conversation. Tenants and priorities stay here: the upstream knows neither.

        Raises:
            UnsupportedByEngine: A prompt of tokens.
            EngineClosed: After `aclose`.
        """
        self._check_open()
        if not isinstance(prompt, Conversation):
            raise self._unsupported(Capability.TOKENS, "give the messages")
        return TextPrefix(prompt, "", 0, PromptCount())

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """Draw `n` children, a request each; what cannot be honoured is refused here.

        Raises:
            UnsupportedByEngine: An option that the upstream is not known to honour.
            EngineClosed: It does not answer, or was lost on the way.
            EngineOverloaded: It takes no more now.
            ContextLengthExceeded: It finds the prompt too long.
            UpstreamRefused: It turned the request down.
        """
        self._check_open()
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is not None and len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        parent = own_prefix(prefix)
        refuse_unsendable(how, parent, self._wire, self.info)
        return self._run(parent, how, self._seeds(how, n, seeds))

    def check_sampling(self, how: Sampling) -> None:
        """Refuse what `sample` would refuse for the first tokens of an answer.

        Raises:
            UnsupportedByEngine: An option that the upstream is not known to honour.
        """
        empty = TextPrefix(Conversation(()), "", 0, PromptCount())
        refuse_unsendable(how, empty, self._wire, self.info)

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """Refuses: there are no tokens to append."""
        self._check_open()
        raise self._unsupported(Capability.TOKENS, "it reads text only")

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """Refuses: upstreams tell a few alternatives, never a distribution."""
        raise self._unsupported(Capability.NEXT_LOGPROBS, "it reads text only")

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """Refuses: there are no tokens to score."""
        raise self._unsupported(Capability.TOKENS, "it reads text only")

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Refuses: there are no hidden states."""
        raise self._unsupported(Capability.HIDDEN_STATES, "use text embeddings")

    def stats(self) -> EngineStats:
        """What the upstream's usage told; its cache is its own."""
        return EngineStats(
            tokens_computed=self._computed,
            tokens_looked_up=self._looked_up,
            tokens_hit=self._hit,
            running=self._running,
            waiting=self._waiting,
        )

    async def aclose(self) -> None:
        """Drop every request; those who wait for them get EngineClosed."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await self._upstream.aclose()

    async def _run(
        self, parent: TextPrefix, how: Sampling, seeds: Sequence[int | None]
    ) -> AsyncGenerator[Delta | Continuation]:
        self._check_open()
        bound = bound_of(how, parent.answer_tokens)
        sent = stops_sent(how, self._wire)
        keeps_stop = self._wire.dialect.keeps_stop is not None
        items: _Items = asyncio.Queue()

        def ended(task: asyncio.Task[None]) -> None:
            error = self._closed() if task.cancelled() else task.exception()
            if error is not None:
                items.put_nowait(error)

        work = []
        for index, seed in enumerate(seeds):
            child = TextChild(index, parent, how, bound, sent, keeps_stop=keeps_stop)
            work.append(asyncio.create_task(self._draw(child, how, seed, items)))
            work[-1].add_done_callback(ended)
        self._tasks.update(work)
        try:
            left = len(work)
            while left:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                left -= isinstance(item, Continuation)
                yield item
        finally:
            for task in work:
                task.cancel()
            await asyncio.wait(work)
            self._tasks.difference_update(work)

    async def _draw(self, child: TextChild, how: Sampling, seed: int | None, items: _Items) -> None:
        """One child to its end. A bound of 0 tokens is an end already."""
        if child.bound.tokens != 0:
            self._waiting += 1
            try:
                await self._places.acquire()
            finally:
                self._waiting -= 1
            self._running += 1
            try:
                await self._fetch(child, how, seed, items)
            finally:
                self._running -= 1
                self._places.release()
        items.put_nowait(self._finished(child))

    async def _fetch(
        self, child: TextChild, how: Sampling, seed: int | None, items: _Items
    ) -> None:
        try:
            await self._read(child, how, seed, items)
        except ContextLengthExceeded as err:
            # An answer that could grow too long is no reason to refuse the prompt: as on every
            # engine, it ends with the context.
            if child.bound.tokens is None or child.has_begun:
                raise
            child.bound = Bound(None, "context")
            try:
                await self._read(child, how, seed, items)
            except ContextLengthExceeded:
                raise err from None

    async def _read(self, child: TextChild, how: Sampling, seed: int | None, items: _Items) -> None:
        body = body_of(how, child.claim, self._wire, seed, child.bound.tokens)
        async with aclosing(self._upstream.stream(self._wire.path, body)) as chunks:
            async for chunk in chunks:
                try:
                    child.feed(chunk)
                except (TypeError, LookupError, AttributeError, ValueError) as err:
                    raise EngineClosed(
                        f"the upstream of model {self.info.model_id!r} sent what is no chunk of "
                        f"an answer: {type(err).__name__}: {err}"
                    ) from err
                if how.deltas and (delta := child.delta()) is not None:
                    items.put_nowait(delta)
                if child.is_over:
                    return
        if not child.has_ended:
            raise EngineClosed(f"the upstream of model {self.info.model_id!r} ended in mid-answer")

    def _finished(self, child: TextChild) -> Continuation:
        done = child.continuation(self._lexicon)
        self._computed += done.computed_tokens
        self._looked_up += child.usage.prompt or 0
        self._hit += done.cached_tokens
        return done

    def _seeds(self, how: Sampling, n: int, seeds: Sequence[int] | None) -> Sequence[int | None]:
        """A seed per child, where the upstream keeps them."""
        if Capability.SEED not in self.info.capabilities:
            return [None] * n
        if seeds is None:
            return [None if how.seed is None else how.seed + index for index in range(n)]
        return seeds

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._closed()

    def _closed(self) -> EngineClosed:
        return EngineClosed(f"the engine of model {self.info.model_id!r} was closed")

    def _unsupported(self, capability: str, why: str) -> UnsupportedByEngine:
        return UnsupportedByEngine(capability, self.info.model_id, why)


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> OpenAIEngine:
    """The engine for settings. Asks the upstream what was not stated, and waits for its answer.

    Raises:
        ModelLoadError: An option is wrong, or the upstream does not answer, has not this model, or
            does not tell what must be known.
    """
    chosen = parse(model_id, model, options)
    info, upstream, wire = discover(model_id, model, chosen)
    return OpenAIEngine(info, upstream, wire, max_concurrency=chosen.max_concurrency)
