"""The null engine: answers by repeating the last user message, byte by byte.

It needs no weights and keeps the whole contract of `engines.base`, so that a server, a strategy
or a load test runs on it anywhere. Its tokens are the 256 bytes, an end-of-answer token and one
marker per chat role. Its distribution is a real one: the next byte of the message (eos after the
last) has logit 0 and every other token ``-margin``, so at the default margin it echoes for
certain, and at a small margin it is a seeded source of noisy, often invalid UTF-8. When eos is
banned or must wait for `min_tokens`, the message is repeated.

It has no cache: nothing is shared, nothing is ever hit, and a claim counts as the pages that its
own tokens would fill. It has no tools, constraints or hidden states.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

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
from engines.drafters.shelf import Shelf
from engines.echo_child import EchoChild, EchoPrefix, own_prefix
from engines.echo_drafting import EchoDrafts
from engines.echo_model import (
    EOS,
    MARKERS,
    VOCAB_SIZE,
    Logits,
    bytes_of,
    child_seeds,
    echo_logits,
    listed,
    log_softmax,
)
from engines.errors import (
    ContextLengthExceeded,
    EngineClosed,
    ModelLoadError,
    PromptError,
    UnsupportedByEngine,
)

PAGE_TOKENS: Final = 16

_ROLES: Final = {**MARKERS, "developer": MARKERS["system"]}


@dataclass(frozen=True)
class EchoOptions:
    """Options of the echo engine.

    Attributes:
        context_tokens: The most tokens of a sequence.
        margin: How much likelier the echoed token is than any other, in nats; 0 is pure noise.
        token_s: Seconds between two tokens of a child: a known pace for load tests.
        step_delimiters: Strings that end a reasoning step.
        max_step_tokens: The longest step worth waiting for.
    """

    context_tokens: int = 4096
    margin: float = 50.0
    token_s: float = 0.0
    step_delimiters: tuple[str, ...] = ("\n",)
    max_step_tokens: int = 256


class EchoEngine:
    """The engine; see the module's docstring for what it answers."""

    def __init__(self, model_id: str, options: EchoOptions) -> None:
        """Nothing is loaded; `model_id` is the id on the wire."""
        self._options = options
        self._is_closed = False
        self._running = 0
        self._tokens_computed = 0
        self._tokens_looked_up = 0
        self._num_requests = 0
        self._begun = -1  # the latest request that a drafter has heard of
        self.claims: set[EchoPrefix] = set()
        self.info = EngineInfo(
            model_id=model_id,
            context_tokens=options.context_tokens,
            vocab_size=VOCAB_SIZE,
            eos_ids=frozenset({EOS}),
            tokenizer_hash="echo-bytes-1",
            parameters=0,
            capabilities=frozenset(
                {
                    Capability.TOKENS,
                    Capability.LOGPROBS,
                    Capability.NEXT_LOGPROBS,
                    Capability.SCHEDULE,
                    Capability.SEED,
                    Capability.DRAFTER,
                }
            ),
            step_delimiters=options.step_delimiters,
            max_step_tokens=options.max_step_tokens,
        )
        self._drafters = Shelf(model_id, VOCAB_SIZE, self.info.tokenizer_hash, None)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """Each message as marker, bytes, eos; then the assistant's marker.

        Raises:
            PromptError: No messages, an unknown role, or content that is not text.
            UnsupportedByEngine: Tools.
        """
        if tools:
            raise UnsupportedByEngine(
                Capability.TOOLS, self.info.model_id, "send the request without tools"
            )
        if not messages:
            raise PromptError("there are no messages to answer; send at least one")
        ids: list[int] = []
        for message in messages:
            role = message.get("role")
            if role not in _ROLES:
                raise PromptError(f"unknown role {role!r}; known: {', '.join(_ROLES)}")
            ids += [_ROLES[role], *self.encode(_content(message)), EOS]
        if continue_final:
            return tuple(ids[:-1])
        return (*ids, MARKERS["assistant"])

    def encode(self, text: str) -> TokenIds:
        """The UTF-8 bytes; a lone surrogate becomes '?'."""
        return tuple(text.encode("utf-8", "replace"))

    def decode(self, ids: TokenIds) -> str:
        """The text of the bytes; invalid ones become U+FFFD."""
        return bytes_of(ids).decode("utf-8", "replace")

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """The text is the content."""
        return Message(content=text)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """Claim a prompt; tenants and priorities make no difference here."""
        self._check_open()
        if isinstance(prompt, Conversation):
            rendered = self.render(prompt.messages)
            assert isinstance(rendered, tuple)
            response_start = len(rendered)
            ids = rendered + self.encode(prompt.assistant_prefix)
        else:
            ids, response_start = tuple(prompt), len(prompt)
        if not ids:
            raise PromptError("the prompt has no tokens; at least one is needed")
        self._check_ids(ids)
        if len(ids) + 1 > self.info.context_tokens:
            raise ContextLengthExceeded(len(ids), self.info.context_tokens)
        self._tokens_looked_up += len(ids)
        self._tokens_computed += len(ids)
        self._num_requests += 1
        return EchoPrefix(self.claims, ids, response_start, self._num_requests)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """Draw `n` children in turns, a token each; what cannot be honoured is refused here."""
        self._check_open()
        self.check_sampling(how)
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is not None and len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        return self._run(prefix, how, child_seeds(how.seed, n) if seeds is None else seeds)

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """New claims with the given tokens appended."""
        self._check_open()
        for prefix, ids in pairs:
            self._check_fits(prefix, ids)
        self._tokens_computed += sum(len(ids) for _, ids in pairs)
        return [own_prefix(prefix).extended(tuple(ids)) for prefix, ids in pairs]

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """Exactly one of `ids`, `mass` and `top_k` says which tokens are listed."""
        self._check_open()
        if sum(choice is not None for choice in (ids, mass, top_k)) != 1:
            raise ValueError("give exactly one of ids, mass and top_k")
        rows = []
        for prefix in prefixes:
            logps = log_softmax(self._logits(prefix.token_ids))
            rows.append(listed(logps, ids, mass, top_k))
        return rows

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """Log-probability of each of `ids`, one after the other."""
        self._check_open()
        self._check_fits(prefix, ids)
        before = prefix.token_ids
        return tuple(
            float(log_softmax(self._logits(before + tuple(ids[:at])))[token])
            for at, token in enumerate(ids)
        )

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Refuses: there are no hidden states."""
        raise UnsupportedByEngine(Capability.HIDDEN_STATES, self.info.model_id)

    def stats(self) -> EngineStats:
        """Claimed pages are those that the live claims would fill."""
        claimed = sum(-(-len(claim.token_ids) // PAGE_TOKENS) for claim in self.claims)
        return EngineStats(
            pages_claimed=claimed,
            page_tokens=PAGE_TOKENS,
            tokens_computed=self._tokens_computed,
            tokens_looked_up=self._tokens_looked_up,
            running=self._running,
        )

    @property
    def health(self) -> Health:
        """Ready until it is closed."""
        return Health.DEAD if self._is_closed else Health.READY

    async def aclose(self) -> None:
        """Running children end with EngineClosed at their next token; claims are dropped."""
        self._is_closed = True
        self.claims.clear()

    async def _run(
        self, prefix: Prefix, how: Sampling, seeds: Sequence[int]
    ) -> AsyncGenerator[Delta | Continuation]:
        self._check_open()
        parent = own_prefix(prefix)
        live = [EchoChild(i, parent, how, seed, self.info) for i, seed in enumerate(seeds)]
        drafts = self._drafts(parent, how)
        self._running += len(live)
        try:
            while live:
                for child in list(live):
                    self._check_open()
                    if not child.is_done:
                        self._tokens_computed += self._turn(child, drafts)
                        if how.deltas and (delta := child.delta()) is not None:
                            yield delta
                    if child.is_done:
                        live.remove(child)
                        self._running -= 1
                        yield child.continuation()
                await asyncio.sleep(self._options.token_s)
        finally:
            self._running -= len(live)
            for child in live:
                child.claim.release()

    def _drafts(self, parent: EchoPrefix, how: Sampling) -> EchoDrafts | None:
        if how.drafter is None:
            return None
        drafts = EchoDrafts(self._drafters[how.drafter], str(parent.request), how.tenant)
        if parent.request > self._begun:
            self._begun = parent.request
            drafts.begin(parent.token_ids)
        return drafts

    def _turn(self, child: EchoChild, drafts: EchoDrafts | None) -> int:
        if drafts is not None:
            return drafts.turn(child, self._logits)
        child.step(self._logits(child.claim.token_ids))
        return 1

    def _logits(self, ids: TokenIds) -> Logits:
        return echo_logits(ids, self._options.margin)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosed(f"the engine of model {self.info.model_id!r} was closed")

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((token for token in ids if not 0 <= token < VOCAB_SIZE), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong} is outside 0..{VOCAB_SIZE - 1}")

    def _check_fits(self, prefix: Prefix, ids: Sequence[int]) -> None:
        self._check_ids(ids)
        if len(prefix.token_ids) + len(ids) > self.info.context_tokens:
            tokens = len(prefix.token_ids) + len(ids)
            raise ContextLengthExceeded(tokens, self.info.context_tokens)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        if how.drafter is not None:
            self._drafters.require(how.drafter)
        if how.constraint is not None:
            raise UnsupportedByEngine(
                "constraint", self.info.model_id, "the echo engine has none; leave it out"
            )
        if len(how.ban_ids & frozenset(range(VOCAB_SIZE))) == VOCAB_SIZE:
            raise UnsupportedByEngine("ban_ids", self.info.model_id, "every token is banned")


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> EchoEngine:
    """The echo engine for settings; `model` is not read.

    Raises:
        ModelLoadError: An unknown option, or a value it cannot have.
    """
    known = EchoOptions()
    try:
        chosen = replace(known, **options)
    except TypeError as err:
        names = ", ".join(EchoOptions.__dataclass_fields__)
        raise ModelLoadError(model or model_id, f"{err}; echo knows {names}") from err
    chosen = replace(chosen, step_delimiters=tuple(chosen.step_delimiters))
    if chosen.context_tokens < 2 or chosen.margin < 0 or chosen.token_s < 0:
        raise ModelLoadError(
            model or model_id,
            f"context_tokens {chosen.context_tokens} must be at least 2, margin {chosen.margin} "
            f"and token_s {chosen.token_s} at least 0",
        )
    return EchoEngine(model_id, chosen)


def _content(message: ChatMessage) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise PromptError("message content must be text")
