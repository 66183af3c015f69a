"""The seam between search and whatever generates tokens.

An engine turns a claimed prefix into continuations. It owns its tokenizer, its chat template and
its KV cache; it knows nothing of strategies, rewards or HTTP. Everything here is data or a
Protocol, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = tuple[int, ...]
ChatMessage: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's shape: at least ``role`` and ``content``."""


@dataclass(frozen=True)
class Conversation:
    """A prompt for an upstream that reads text only: messages and the answer's beginning."""

    messages: tuple[ChatMessage, ...]
    assistant_prefix: str = ""


Prompt: TypeAlias = TokenIds | Conversation


class Capability(StrEnum):
    """What an engine may be able to do; declared by engines, required by strategies."""

    TOKENS = "tokens"
    CONTINUE_TEXT = "continue_text"
    CHAT_ONLY = "chat_only"
    LOGPROBS = "logprobs"
    NEXT_LOGPROBS = "next_logprobs"
    SCHEDULE = "schedule"
    DRAFTER = "drafter"
    CONSTRAINT = "constraint"
    TOOLS = "tools"
    HIDDEN_STATES = "hidden_states"
    SEED = "seed"
    DENOISE = "denoise"


class Finish(StrEnum):
    """Why a continuation ended. Only the first two can be expanded further."""

    BOUNDARY = "boundary"
    STEP_LENGTH = "step_length"
    STOP = "stop"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    CONTEXT = "context"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether the branch may be continued."""
        return self in (Finish.BOUNDARY, Finish.STEP_LENGTH)


class Health(StrEnum):
    """Whether an engine can answer now.

    AWAY is what it cannot change and may pass: an upstream that does not respond. DEAD is for good:
    it was closed, or its worker died; only a new engine helps, so the process should be restarted.
    """

    READY = "ready"
    AWAY = "away"
    DEAD = "dead"


@dataclass(frozen=True)
class EngineInfo:
    """What callers may know of an engine without asking it.

    Attributes:
        model_id: The id on the wire.
        context_tokens: The most tokens of a sequence, prompt and answer together.
        vocab_size: Rows of the logits.
        eos_ids: Tokens that end an answer.
        tokenizer_hash: Equal for two models iff their token ids mean the same.
        parameters: Weights in the model, for cost accounting; 0 where unknown.
        capabilities: What the engine can do.
        step_delimiters: Strings that end one reasoning step of this model.
        max_step_tokens: The longest step worth waiting for, in tokens.
    """

    model_id: str
    context_tokens: int
    vocab_size: int
    eos_ids: frozenset[int]
    tokenizer_hash: str
    parameters: int
    capabilities: frozenset[Capability]
    step_delimiters: tuple[str, ...] = ("\n\n",)
    max_step_tokens: int = 256


class Schedule(Protocol):
    """Temperature as a pure function of the position in the answer."""

    def temperature(self, position: int) -> float:
        """Temperature for the token at `position`, counted from the answer's start."""

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        """The piecewise-constant form: (first position, temperature) pairs."""


@dataclass(frozen=True)
class Constraint:
    """What an answer must look like, as data; the engine compiles it. Exactly one is given.

    It holds for the whole answer, from the response's start.

    Attributes:
        json_schema: A JSON Schema.
        regex: A regular expression for all of the answer.
        grammar: A context-free grammar in EBNF; the start rule is ``root``.
    """

    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = sum(value is not None for value in (self.json_schema, self.regex, self.grammar))
        if given != 1:
            raise ValueError(f"a constraint is one of json_schema, regex and grammar, not {given}")


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens, and when to stop. The defaults sample the model's own distribution.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: Keep the smallest set of tokens holding this probability, in (0, 1].
        top_k: Keep this many tokens; 0 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest.
        presence_penalty: Subtracted once from every token already in the answer (nats).
        frequency_penalty: Subtracted once per occurrence in the answer (nats).
        repetition_penalty: Divides positive and multiplies negative logits of seen tokens (prompt
            included).
        logit_bias: Added to the logits of these ids.
        seed: Stream of the only child; `sample(seeds=…)` overrides it. None draws one.
        stop: Strings that end the answer and are not part of its text.
        stop_token_ids: Ids that end the answer, beside the engine's eos ids.
        max_tokens: The most tokens of this answer, counted from the response's start; None is up to
            the context's end.
        min_tokens: Eos, stop ids and stop strings do not end the answer before this many tokens of
            it.
        ban_ids: Ids that are never drawn.
        logprobs: How many alternatives to report with every token; None reports none.
        schedule: Temperature by position; replaces `temperature`.
        drafter: Name of a drafter; needs Capability.DRAFTER.
        constraint: What the answer must look like; needs Capability.CONSTRAINT.
        tenant: Whose request this is; caches are never shared between tenants.
        boundaries: Strings that end a *step*: the whole token completing one stays in `token_ids`
            and `text`.
        max_step_tokens: Ends a step after this many tokens of it (Finish.STEP_LENGTH).
        deltas: Whether the caller reads Deltas; False asks for Continuations only, which is
            cheaper.
        logps: Whether the caller reads `logps`; False without `logprobs` lets an engine leave them
            out, all of them, where that is cheaper.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    max_tokens: int | None = None
    min_tokens: int = 0
    ban_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    schedule: Schedule | None = None
    drafter: str | None = None
    constraint: Constraint | None = None
    tenant: str = ""
    boundaries: tuple[str, ...] = ()
    max_step_tokens: int | None = None
    deltas: bool = True
    logps: bool = True


class Prefix(Protocol):
    """A claim on a token prefix.

    One owner; `fork` makes another claim; `release` is idempotent and never raises. The position of
    the next token in the answer is ``len(token_ids) - response_start``: schedules, penalties and
    stop strings read it, and it survives fork, extend and re-open.
    """

    @property
    def token_ids(self) -> TokenIds:
        """All tokens, prompt first."""

    @property
    def text(self) -> str:
        """The answer's text so far: the decoded tokens from `response_start` on."""

    @property
    def response_start(self) -> int:
        """Number of leading tokens that are the prompt."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of this prefix whose KV was found in the cache when it was opened."""

    def fork(self) -> Prefix:
        """Another claim on the same tokens."""

    def release(self) -> None:
        """Give the claim back."""


@runtime_checkable
class CountedPrefix(Prefix, Protocol):
    """A prefix of an engine that reads text only: `token_ids` is empty, the upstream counts."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt as the upstream counted them; 0 until it has."""


def prompt_size(prefix: Prefix) -> int:
    """Tokens of a prompt that was just opened; 0 where nobody has counted them yet."""
    return prefix.prompt_tokens if isinstance(prefix, CountedPrefix) else len(prefix.token_ids)


TopLogps: TypeAlias = tuple[tuple[int, float], ...]
"""Alternatives of one position: (id, logp) in nats, likeliest first."""


@dataclass(frozen=True)
class Delta:
    """What one child gained since its last delta.

    `text` is a suffix of the child's text that no later token changes: characters still incomplete
    in UTF-8, and those that may turn out to begin a stop string, are held back. Concatenated, a
    child's deltas are a prefix of its Continuation's `text`. Where the upstream names no tokens,
    `token_ids` is empty and `counted_tokens` says how many came.
    """

    index: int
    token_ids: TokenIds
    text: str
    logps: tuple[float, ...] = ()
    top_logps: tuple[TopLogps, ...] | None = None
    counted_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that came, named or only counted."""
        return len(self.token_ids) if self.counted_tokens is None else self.counted_tokens


@dataclass(frozen=True)
class Continuation:
    """One finished child of `sample`.

    Attributes:
        prefix: A claim that the receiver owns, at the end of `token_ids`.
        token_ids: New whole tokens. `decode` of them equals `text` unless `finish` is STOP: then
            `text` ends before the stop string, `token_ids` are the whole tokens inside `text`, and
            `overrun_ids` the rest. A token that stopped the answer (STOP_TOKEN) is in
            `overrun_ids`, not in `token_ids`.
        text: The new text.
        logps: Log-probability of each of `token_ids` at temperature 1 before any truncation, in
            nats.
        finish: Why it ended.
        matched: The boundary, stop string or stop id that ended it.
        index: The child's number in its `sample` call.
        overrun_ids: Tokens drawn but not part of `text`.
        top_logps: Alternatives per token when `Sampling.logprobs` asked for them.
        cached_tokens: Prompt tokens found in the cache.
        computed_tokens: Tokens run through the model for this child, its share of the prompt
            included.
        drafted: Tokens proposed by a drafter.
        accepted: Drafted tokens that were kept.
        nfe: Denoiser evaluations.
        counted_tokens: Tokens of `text` as an upstream counts them that names none: `token_ids`,
            `overrun_ids` and `logps` are then empty. None where they are named.
        counted_overrun: Likewise, tokens drawn but not part of `text`.
    """

    prefix: Prefix
    token_ids: TokenIds
    text: str
    logps: tuple[float, ...]
    finish: Finish
    matched: str | int | None = None
    index: int = 0
    overrun_ids: TokenIds = ()
    top_logps: tuple[TopLogps, ...] | None = None
    cached_tokens: int = 0
    computed_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    nfe: int = 0
    counted_tokens: int | None = None
    counted_overrun: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of `text`, named or only counted."""
        return len(self.token_ids) if self.counted_tokens is None else self.counted_tokens

    @property
    def num_overrun(self) -> int:
        """Tokens drawn but not part of `text`."""
        return len(self.overrun_ids) if self.counted_tokens is None else self.counted_overrun


@dataclass(frozen=True)
class NextTokens:
    """The next-token distribution of one prefix, at temperature 1.

    Attributes:
        ids: Token ids; likeliest first, or in the order asked for.
        logps: Their log-probabilities in nats.
        tail_mass: Probability of everything not listed, in 0..1.
    """

    ids: TokenIds
    logps: tuple[float, ...]
    tail_mass: float


@dataclass(frozen=True)
class Message:
    """An answer taken apart by the engine's parser."""

    content: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """Gauges and counters. Pages are 0 for engines without an addressable cache.

    Attributes:
        pages_free: Pages holding nothing.
        pages_cached: Pages holding evictable cache.
        pages_claimed: Pages that somebody's claim keeps.
        page_tokens: Tokens in one page.
        tokens_computed: Tokens run through the model so far; branches that share a row count each.
        tokens_looked_up: Prompt tokens looked up in the cache so far.
        tokens_hit: Of those, found.
        running: Sequences in the current batch.
        waiting: Sequences queued for room.
    """

    pages_free: int = 0
    pages_cached: int = 0
    pages_claimed: int = 0
    page_tokens: int = 0
    tokens_computed: int = 0
    tokens_looked_up: int = 0
    tokens_hit: int = 0
    running: int = 0
    waiting: int = 0


@runtime_checkable
class Engine(Protocol):
    """Generates. See the conformance suite in `engines.conformance` for its laws."""

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """The prompt for `messages` by the model's own chat template.

        Raises:
            PromptError: The template refuses these messages.
        """

    def encode(self, text: str) -> TokenIds:
        """Token ids of `text`, without any special token added."""

    def decode(self, ids: TokenIds) -> str:
        """Text of `ids`, special tokens left out."""

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """An answer's text as a message."""

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """Claim a prompt; its tokens are computed at the latest by the first `sample`.

        Raises:
            ContextLengthExceeded: No room for one new token.
            CapacityExceeded: The cache could never hold it.
            EngineClosed: The engine is gone.
        """

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncIterator[Delta | Continuation]:
        """Draw `n` children of `prefix`, which stays the caller's.

        Deltas carry the child's index; the last item of each index is its Continuation. Children
        come as they finish. Closing the iterator cancels what is running and releases it.

        Raises:
            UnsupportedByEngine: An option of `how` that the engine cannot honour.
            EngineClosed: The engine is gone.
        """

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """New claims with the given tokens appended; the arguments stay the caller's."""

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """Next tokens: exactly `ids`, the nucleus holding `mass`, or the `top_k` likeliest."""

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """Log-probability of each of `ids` after `prefix`, in nats at temperature 1."""

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Mean final hidden state of each prefix's last `last_tokens[i]` tokens, (n, d) float32.

        Raises:
            UnsupportedByEngine: Without Capability.HIDDEN_STATES.
        """

    def stats(self) -> EngineStats:
        """Gauges and counters now."""

    @property
    def health(self) -> Health:
        """What is known without asking anybody: never waits, never raises."""

    async def aclose(self) -> None:
        """Stop, cancel what runs, free everything; idempotent."""


@runtime_checkable
class ChecksSampling(Protocol):
    """An engine that can say before any work what it would refuse later."""

    def check_sampling(self, how: Sampling) -> None:
        """Refuse what `sample` would refuse for an answer's first tokens; asks nobody.

        Raises:
            UnsupportedByEngine: An option of `how` that the engine cannot honour.
        """
