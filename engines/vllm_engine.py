"""vLLM in this process: `engines.base.Engine` on `AsyncLLM`.

Prompts are token ids and vLLM's prefix cache finds what branches share, block by block: a branch is
continued by sending its tokens again, and all but the last block of them are found. Tenants are
kept apart by a cache salt, branches of one prompt stay on one data-parallel rank, and every child
is a request of its own, with its own seed, that is aborted when its reader goes.

Differs from the embedded engine: a claim holds no pages (`engines.token_prefix`); there are no
hidden states; a constraint needs an answer that is drawn in one piece; a seed gives the same
tokens only where the batch's arithmetic does, which float32 nearly always and bfloat16 often does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
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
from engines.child import TokenChild
from engines.drafters.sharing import Taught
from engines.echo_model import child_seeds
from engines.errors import (
    ContextLengthExceeded,
    InvariantError,
    PromptError,
    UnsupportedByEngine,
)
from engines.merging import merged
from engines.token_prefix import TokenPrefix, own_prefix
from engines.vllm_request import NeedleIndex, RequestMaker, check
from engines.vllm_tops import chosen_tops, listed

if TYPE_CHECKING:
    from engines.vllm_backend import Drawn, VllmBackend
    from engines.vllm_chat import VllmChat
    from engines.vllm_proposer import Report
    from engines.vllm_stats import Drafting

_FIRST_TOPS: Final = 64  # alternatives asked for first, when a nucleus or certain ids are wanted
_MORE_TOPS: Final = 8  # how many times more, when these do not do

_GREEDY: Final[Mapping[str, Any]] = {
    "max_tokens": 1,
    "temperature": 0.0,
    "ignore_eos": True,
    "flat_logprobs": True,
    "detokenize": False,
    "skip_clone": True,
}


class VllmEngine:
    """The engine.

    Args:
        info: What it is.
        backend: vLLM, running.
        chat: Templates and parsers.
        token_bytes: Bytes of every token id of the vocabulary.
        encode: Text to ids.
        drafts: Whether speculative decoding is on.
        drafter: The drafter of ours that does it.
    """

    def __init__(
        self,
        info: EngineInfo,
        backend: VllmBackend,
        chat: VllmChat,
        token_bytes: Sequence[bytes],
        encode: Callable[[str], TokenIds],
        *,
        drafts: bool = False,
        drafter: str | None = None,
    ) -> None:
        self.info = info
        self._backend = backend
        self._chat = chat
        self._token_bytes = token_bytes
        self._encode = encode
        self._drafts = drafts
        self._drafter = drafter
        self._needles = NeedleIndex(token_bytes)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """See `Engine.render`; by vLLM's renderer."""
        return self._chat.render(messages, tools, continue_final=continue_final)

    def encode(self, text: str) -> TokenIds:
        """See `Engine.encode`."""
        return self._encode(text)

    def decode(self, ids: TokenIds) -> str:
        """See `Engine.decode`."""
        return b"".join(self._token_bytes[token] for token in ids).decode("utf-8", "replace")

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """See `Engine.parse`; by the options ``tool_parser`` and ``reasoning_parser``."""
        return self._chat.parse(text, tools)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """See `Engine.open`; nothing is computed before the first `sample`."""
        self._backend.require_open()
        if not isinstance(prompt, tuple):
            raise PromptError("this engine reads token ids; render the conversation first")
        if not prompt:
            raise PromptError("the prompt has no tokens; at least one is needed")
        self._require_ids(prompt)
        if len(prompt) >= self.info.context_tokens:
            raise ContextLengthExceeded(len(prompt), self.info.context_tokens)
        return TokenPrefix(self._token_bytes, prompt, len(prompt), tenant=tenant, priority=priority)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """See `Engine.sample`; what cannot be honoured is refused here."""
        claim = self._own(prefix)
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is not None and len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        maker = RequestMaker(
            how,
            self._needles,
            self.info,
            drafts=self._drafts,
            position=claim.position,
            drafter=self._drafter,
        )
        children = [TokenChild(index, claim, how, self.info) for index in range(n)]
        chosen = child_seeds(how.seed, n) if seeds is None else seeds
        if not children[0].is_over:
            self._backend.check(maker.next(children[0], chosen[0]).params, how.constraint)
        draws = [
            self._draw(child, claim, maker, seed)
            for child, seed in zip(children, chosen, strict=True)
        ]
        # Siblings are submitted in one go: the first computes the prompt, the others find it.
        return draws[0] if n == 1 else merged(draws)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        # An answer in steps is refused now what only its second step could not have.
        position = 1 if how.boundaries else 0
        check(how, self.info, drafts=self._drafts, position=position, drafter=self._drafter)
        if how.constraint is not None:
            self._backend.check({}, how.constraint)

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """See `Engine.extend`; the new tokens are computed when they are first needed."""
        claims = [(self._own(prefix), ids) for prefix, ids in pairs]
        for claim, ids in claims:
            self._require_ids(ids)
            size = len(claim.token_ids) + len(ids)
            if size > self.info.context_tokens:
                raise ContextLengthExceeded(size, self.info.context_tokens)
        return [claim.extended(ids, claim.cached_tokens) for claim, ids in claims]

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """See `Engine.next_logprobs`.

        vLLM lists the likeliest tokens; it is asked for more until they hold what is wanted. It can
        list given ids as well, but a batch where somebody does so loses the alternatives of all
        others.
        """
        if sum(option is not None for option in (ids, mass, top_k)) != 1:
            raise ValueError("exactly one of ids, mass and top_k is needed")
        self._require_ids(ids or ())
        claims = [self._own(prefix) for prefix in prefixes]
        return list(
            await asyncio.gather(*(self._next(claim, ids, mass, top_k) for claim in claims))
        )

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """See `Engine.score`; vLLM computes the whole prompt again for it."""
        claim = self._own(prefix)
        self._require_ids(ids)
        if not ids:
            return ()
        tokens = claim.token_ids + tuple(ids)
        if len(tokens) >= self.info.context_tokens:  # vLLM wants room to draw a token
            [last] = await self.next_logprobs([claim.extended(ids[:-1], 0)], ids=ids[-1:])
            return (*await self.score(claim, ids[:-1]), *last.logps)
        drawn = await self._last(claim, tokens, {"logprobs": 0, "prompt_logprobs": 0})
        return drawn.prompt_logps[-len(ids) :]

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Refuses: vLLM shows no hidden states beside the logits."""
        raise UnsupportedByEngine(
            Capability.HIDDEN_STATES, self.info.model_id, "use text embeddings"
        )

    def stats(self) -> EngineStats:
        """See `Engine.stats`; a page is a KV block."""
        return self._backend.stats()

    @property
    def num_preempted(self) -> int:
        """Requests so far that lost their KV to others and were computed again."""
        return self._backend.num_preempted

    @property
    def drafting(self) -> Drafting:
        """What speculative decoding did so far, for all requests together."""
        return self._backend.drafting

    async def drafter_report(self) -> Report | None:
        """What the drafter of ours did and holds; None without one. Asks vLLM's process."""
        self._backend.require_open()
        return await self._backend.drafts.report()

    def taught(self) -> list[Taught]:
        """See `SharesDrafts.taught`."""
        return self._backend.drafts.taught()

    async def draft_snapshot(self, of: Taught) -> bytes:
        """See `SharesDrafts.draft_snapshot`."""
        self._backend.require_open()
        return await self._backend.drafts.snapshot(of)

    async def merge_drafts(self, of: Taught, data: bytes) -> None:
        """See `SharesDrafts.merge_drafts`."""
        self._backend.require_open()
        await self._backend.drafts.merge(of, data)

    @property
    def health(self) -> Health:
        """Dead once it was closed or vLLM's engine core died."""
        return self._backend.health

    async def aclose(self) -> None:
        """See `Engine.aclose`; vLLM's processes end."""
        await self._backend.aclose()

    async def _draw(
        self, child: TokenChild, claim: TokenPrefix, maker: RequestMaker, seed: int
    ) -> AsyncGenerator[Delta | Continuation]:
        """One child, by as many requests as it takes: one, but for schedules in pieces."""
        cached = computed = drafted = accepted = 0
        while not child.is_over:
            request, prompt = maker.next(child, seed), child.token_ids
            found = num_drawn = 0
            stream = self._backend.run(
                claim,
                prompt,
                request.params,
                constraint=maker.how.constraint,
                is_final_only=request.is_final_only,
            )
            async with aclosing(stream):
                async for drawn in stream:
                    found = max(found, drawn.cached_tokens)
                    num_drawn += len(drawn.token_ids)
                    drafted += drawn.drafted
                    accepted += drawn.accepted
                    child.feed(drawn.token_ids, drawn.logps, drawn.tops or None)
                    if drawn.reason == "abort":
                        child.cancel()
                    if maker.how.deltas and (delta := child.delta()) is not None:
                        yield delta
                    if child.is_over and drawn.reason is None:
                        break  # closing the stream aborts the request
            if not num_drawn and not child.is_over:
                raise InvariantError(f"vLLM drew nothing where {child.room} tokens had room")
            cached = cached or found
            computed += len(prompt) - found + max(0, num_drawn - 1)  # the last was not run
        yield child.continuation(
            cached_tokens=cached,
            computed_tokens=computed + drafted - accepted,
            drafted=drafted,
            accepted=accepted,
        )

    async def _next(
        self,
        claim: TokenPrefix,
        ids: Sequence[int] | None,
        mass: float | None,
        top_k: int | None,
    ) -> NextTokens:
        size = self.info.vocab_size
        count = min(size, _FIRST_TOPS if top_k is None else max(1, top_k))
        while True:
            drawn = await self._last(claim, claim.token_ids, {"logprobs": count})
            row = drawn.tops[0]
            chosen = chosen_tops(row, ids, mass, top_k)
            if chosen is not None or count >= size:
                return listed(row if chosen is None else chosen)
            count = min(size, count * _MORE_TOPS)

    async def _last(self, claim: TokenPrefix, tokens: TokenIds, params: dict[str, Any]) -> Drawn:
        """The only output of a request for one token."""
        if len(tokens) >= self.info.context_tokens:
            raise ContextLengthExceeded(len(tokens), self.info.context_tokens)
        stream = self._backend.run(claim, tokens, {**_GREEDY, **params}, is_final_only=True)
        async with aclosing(stream):
            async for drawn in stream:
                return drawn
        raise InvariantError("vLLM ended a request without an output")

    def _own(self, prefix: Prefix) -> TokenPrefix:
        self._backend.require_open()
        return own_prefix(prefix, self._token_bytes)

    def _require_ids(self, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.info.vocab_size:
            raise PromptError(f"token ids must be in 0 … {self.info.vocab_size - 1}")
