"""An engine and a judge small enough to enumerate.

The engine's distribution is a table from the answer so far to the probabilities of the next
character, so every answer and its exact probability can be listed (`answers_of`). Draws are keyed
by seed and position. Claims are counted, and `gate` holds every child until a test opens it.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
    Delta,
    NextTokens,
    Prefix,
    Prompt,
    Sampling,
    TokenIds,
)
from engines.echo import EchoEngine, EchoOptions
from engines.echo_model import EOS, MARKERS, VOCAB_SIZE, Logits, bytes_of
from reward_models.base import (
    Candidate,
    Claim,
    RewardInfo,
    RewardKind,
    RewardRow,
    RewardStats,
    Score,
)
from reward_models.errors import RewardUnavailable

END = "<end>"
TOKENIZER = "toy-bytes-1"
Table = Callable[[str], Mapping[str, float]]
MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "?"},)


def babble(text: str) -> Mapping[str, float]:
    """Letters and line ends without a plan."""
    return {"a": 0.4, "b": 0.3, "\n": 0.2, END: 0.1}


def one_of(answers: Mapping[str, float]) -> Table:
    """A table under which each of these answers has its given probability."""

    def table(text: str) -> Mapping[str, float]:
        weights: Counter[str] = Counter()
        for answer, probability in answers.items():
            if answer.startswith(text):
                following = answer[len(text) : len(text) + 1] or END
                weights[following] += probability
        total = sum(weights.values())
        return {char: weight / total for char, weight in weights.items()} if total else {END: 1.0}

    return table


def answers_of(table: Table, text: str = "", probability: float = 1.0) -> dict[str, float]:
    """Every answer of a table without loops, with its exact probability."""
    found: dict[str, float] = {}
    for char, share in table(text).items():
        if char == END:
            found[text] = found.get(text, 0.0) + probability * share
        else:
            for answer, mass in answers_of(table, text + char, probability * share).items():
                found[answer] = found.get(answer, 0.0) + mass
    return found


class ToyEngine(EchoEngine):
    """Draws characters from a table.

    Attributes:
        claims: The claims that nobody has given back yet.
        calls: How often each method was called.
        gate: While set to an Event that is clear, nothing comes out of `sample`.
        on_item: Called before every item of `sample`.
    """

    def __init__(
        self,
        table: Table = babble,
        *,
        context_tokens: int = 400,
        max_step_tokens: int = 64,
        without: Sequence[Capability] = (),
    ) -> None:
        options = EchoOptions(context_tokens=context_tokens, max_step_tokens=max_step_tokens)
        super().__init__("toy", options)
        has = (self.info.capabilities | {Capability.HIDDEN_STATES}) - set(without)
        self.info = replace(self.info, tokenizer_hash=TOKENIZER, capabilities=frozenset(has))
        self.table = table
        self.calls: Counter[str] = Counter()
        self.gate: asyncio.Event | None = None
        self.on_item: Callable[[], None] = lambda: None

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        self.calls["open"] += 1
        await asyncio.sleep(0)
        return await super().open(prompt, tenant=tenant, priority=priority)

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        self.calls["next_logprobs"] += 1
        self.on_item()
        await asyncio.sleep(0)
        return await super().next_logprobs(prefixes, ids=ids, mass=mass, top_k=top_k)

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        self.calls["extend"] += 1
        await asyncio.sleep(0)
        return await super().extend(pairs)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        self.calls["sample"] += 1
        return self._gated(super().sample(prefix, how, n=n, seeds=seeds))

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Counts of each byte among the last tokens."""
        self.calls["embed"] += 1
        await asyncio.sleep(0)
        rows = np.zeros((len(prefixes), VOCAB_SIZE), dtype=np.float32)
        for row, prefix, size in zip(rows, prefixes, last_tokens, strict=True):
            for token in prefix.token_ids[-size:]:
                row[token] += 1
        return rows

    async def _gated(
        self, stream: AsyncGenerator[Delta | Continuation]
    ) -> AsyncGenerator[Delta | Continuation]:
        try:
            while True:
                if self.gate is not None:
                    await self.gate.wait()
                try:
                    item = await anext(stream)
                except StopAsyncIteration:
                    return
                self.on_item()
                yield item
        finally:
            await stream.aclose()

    def _logits(self, ids: TokenIds) -> Logits:
        start = max(at for at, token in enumerate(ids) if token == MARKERS["assistant"])
        text = bytes_of(ids[start + 1 :]).decode("utf-8", "replace")
        logits = np.full(VOCAB_SIZE, -60.0)
        for char, probability in self.table(text).items():
            if probability:
                logits[EOS if char == END else ord(char)] = math.log(probability)
        return logits


class ToyClaim:
    """A judge's claim that is counted."""

    def __init__(
        self, claims: set["ToyClaim"], token_ids: TokenIds = (), answer_start: int = 0
    ) -> None:
        self._claims = claims
        self.token_ids = token_ids
        self.answer_start = answer_start
        claims.add(self)

    def fork(self) -> "ToyClaim":
        return self.extend(())

    def extend(self, ids: TokenIds) -> "ToyClaim":
        return ToyClaim(self._claims, self.token_ids + tuple(ids), self.answer_start)

    def release(self) -> None:
        self._claims.discard(self)


class ToyJudge:
    """Values every step by a function of the text up to its end.

    Attributes:
        claims: The claims that nobody has given back yet.
        batches: Sizes of the batches judged.
        seen: Every candidate judged.
        gate: While set to an Event that is clear, `score` waits.
    """

    def __init__(
        self, value: Callable[[str], float], kind: RewardKind = RewardKind.PROCESS
    ) -> None:
        self.info = RewardInfo("toy-judge", kind)
        self.value = value
        self.claims: set[ToyClaim] = set()
        self.batches: list[int] = []
        self.seen: list[Candidate] = []
        self.gate: asyncio.Event | None = None

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        await asyncio.sleep(0)
        return ToyClaim(self.claims)

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        self.batches.append(len(batch))
        self.seen += batch
        return [self._score(candidate) for candidate in batch]

    def stats(self) -> RewardStats:
        return RewardStats(pages_claimed=len(self.claims))

    async def aclose(self) -> None:
        self.claims.clear()

    def _score(self, candidate: Candidate) -> Score:
        if self.info.kind is not RewardKind.PROCESS:
            return Score(self.value(candidate.text), (), len(candidate.text))
        ends = [len("".join(candidate.steps[: at + 1])) for at in range(len(candidate.steps))]
        values = [self.value(candidate.text[:end]) for end in ends]
        return Score(values[-1] if values else 0.0, tuple(values), len(candidate.text))


class ToyRow:
    """Rewards of every next character: the value of the text that it makes; NaN forbids it."""

    def __init__(self, value: Callable[[str], float], token_ids: TokenIds) -> None:
        self._value = value
        self._token_ids = token_ids

    def at(self, ids: Sequence[int]) -> list[float]:
        return [self._value(toy_text((*self._token_ids, one))) for one in ids]


class ToyMultifurcation(ToyJudge):
    """Values every next character by a function of the text up to it, and the end as `END`.

    Attributes:
        forwards: Claims read by each call of `next_rewards`.
    """

    def __init__(self, value: Callable[[str], float], tokenizer_hash: str = TOKENIZER) -> None:
        super().__init__(value, RewardKind.MULTIFURCATION)
        self.info = replace(self.info, tokenizer_hash=tokenizer_hash)
        self.forwards: list[int] = []
        self._computed: set[TokenIds] = set()
        self._is_closed = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        await asyncio.sleep(0)
        ids = tuple("".join(str(one["content"]) for one in messages).encode())
        return ToyClaim(self.claims, ids, len(ids))

    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        owned = [claim for claim in claims if isinstance(claim, ToyClaim)]
        assert self.claims.issuperset(owned)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        self.forwards.append(len(claims))
        for claim in owned:
            ids = claim.token_ids
            self._computed |= {ids[:size] for size in range(1, len(ids) + 1)}
        return [ToyRow(self.value, claim.token_ids[claim.answer_start :]) for claim in owned]

    def stats(self) -> RewardStats:
        return replace(super().stats(), tokens_computed=len(self._computed))

    async def aclose(self) -> None:
        self._is_closed = True
        await super().aclose()

    def _score(self, candidate: Candidate) -> Score:
        if self._is_closed:
            raise RewardUnavailable("closed")
        text = candidate.text or toy_text(candidate.token_ids)
        return Score(self.value(text), (), len(text))


def toy_text(ids: TokenIds) -> str:
    """Characters of tokens; the end of the answer is `END`."""
    return "".join(END if one == EOS else chr(one) for one in ids)
