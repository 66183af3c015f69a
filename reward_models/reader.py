"""A judge that reads answers on the embedded runtime: the part common to all of them.

A layout says which tokens to read and where to judge, a head what a state is worth. The judge owns
its KV trie, so what answers share is read once however many branches share it, and it remembers the
value of every step it has judged. An answer that grew by a step costs the tokens of that step and
of the template around it.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from engines.base import ChatMessage, TokenIds
from engines.embedded.claims import PageClaim
from engines.embedded.jobs import ReadRequest
from engines.embedded.runtime import Runtime
from engines.errors import EngineClosed, EngineError, PromptError
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.errors import RewardUnavailable
from reward_models.heads import Head, Judged
from reward_models.layouts import Layout

_MAX_REMEMBERED: Final = 1 << 17


@dataclass(frozen=True)
class _Reading:
    """One candidate laid out in tokens.

    Attributes:
        tenant: Whose cache.
        tokens: What to run.
        start: Length of what stands in front of the answer.
        ends: Lengths up to each judged token.
        keys: What each of them is remembered by.
        known: Those that are.
        num_blank: Steps in front of the first judged one.
    """

    tenant: str
    tokens: TokenIds
    start: int
    ends: tuple[int, ...]
    keys: tuple[bytes, ...]
    known: Mapping[bytes, Judged]
    num_blank: int


class ReadingJudge:
    """Reads answers with a decoder and judges what it read with a head.

    Args:
        info: What callers may know of it.
        runtime: The decoder with its cache; the judge closes it.
        layout: What is read.
        head: What it is worth.
    """

    def __init__(self, info: RewardInfo, runtime: Runtime, layout: Layout, head: Head) -> None:
        self.info = info
        self._runtime = runtime
        self._layout = layout
        self._head = head
        self._judged: OrderedDict[bytes, Judged] = OrderedDict()

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`.

        Raises:
            RewardUnavailable: The judge is closed.
        """
        tokens = self._layout.prompt(messages)
        try:
            return self._runtime.claim(tokens, tenant=tenant, response_start=len(tokens))
        except EngineClosed as err:
            raise RewardUnavailable(f"{self.info.model_id} is closed") from err

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """See `RewardModel.score`. A candidate longer than the context scores NaN.

        Raises:
            RewardUnavailable: The runtime is closed or failed.
        """
        readings = [self._lay_out(candidate) for candidate in batch]
        wanted: dict[bytes, ReadRequest] = {}
        for reading in readings:
            if reading is not None and (request := self._request(reading)) is not None:
                wanted.setdefault(reading.keys[-1], request)
        try:
            self._runtime.require_open()
            results = await self._runtime.read(list(wanted.values()))
        except EngineError as err:
            raise RewardUnavailable(f"{self.info.model_id}: {err}") from err
        computed = dict.fromkeys(wanted, 0)
        fresh: dict[bytes, Judged] = {}
        for key, result in zip(wanted, results, strict=True):
            computed[key] = result.computed_tokens
            fresh.update(result.value)
        scores = [self._score(reading, fresh, computed) for reading in readings]
        self._remember(fresh)
        return scores

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`."""
        stats = self._runtime.stats()
        return RewardStats(
            pages_free=stats.pages_free,
            pages_cached=stats.pages_cached,
            pages_claimed=stats.pages_claimed,
            tokens_computed=stats.tokens_computed,
        )

    async def aclose(self) -> None:
        """See `RewardModel.aclose`."""
        await self._runtime.aclose()

    def _lay_out(self, candidate: Candidate) -> _Reading | None:
        """Tokens and step ends of a candidate; None when they cannot be read."""
        claim = candidate.claim if isinstance(candidate.claim, PageClaim) else None
        tenant, claimed = (claim.tenant, claim.token_ids) if claim is not None else ("", None)
        try:
            laid = self._layout.lay_out(candidate.messages, candidate.steps, claimed)
        except PromptError:
            return None
        if len(laid.tokens) > self._runtime.context_tokens:
            return None
        ends = tuple(end for end in laid.ends if end)
        keys = _keys(tenant, laid.tokens, ends)
        known = {key: self._judged[key] for key in keys if key in self._judged}
        num_blank = len(laid.ends) - len(ends)
        return _Reading(tenant, laid.tokens, laid.start, ends, keys, known, num_blank)

    def _request(self, reading: _Reading) -> ReadRequest | None:
        """What must still be run for a candidate; None when every step is remembered."""
        num_known = next(
            (i for i, key in enumerate(reading.keys) if key not in reading.known), None
        )
        if num_known is None:
            return None
        logp = reading.known[reading.keys[num_known - 1]].logp if num_known else 0.0
        keys, ends = reading.keys[num_known:], reading.ends[num_known:]
        first = ends[0] - 1
        if self._head.reads_tokens:
            # Logits for a step's first token come from the token in front of it.
            first = (reading.ends[num_known - 1] if num_known else reading.start) - 1
        rows = [end - 1 - first for end in ends]
        tokens = reading.tokens[first + 1 : ends[-1]]

        def finish(hidden: torch.Tensor) -> list[tuple[bytes, Judged]]:
            judged = self._head.judge(hidden, rows, tokens, logp)
            return list(zip(keys, judged, strict=True))

        return ReadRequest(reading.tenant, reading.tokens[: ends[-1]], first, finish)

    def _score(
        self, reading: _Reading | None, fresh: Mapping[bytes, Judged], computed: dict[bytes, int]
    ) -> Score:
        if reading is None:
            return Score(math.nan)
        is_process = self.info.kind is RewardKind.PROCESS
        if not reading.ends:
            return Score(self.info.low, (self.info.low,) * reading.num_blank)
        judged = [fresh[key] if key in fresh else reading.known[key] for key in reading.keys]
        values = (self.info.low,) * reading.num_blank + tuple(step.value for step in judged)
        # Of equal candidates the first one pays.
        tokens_computed = computed.pop(reading.keys[-1], 0)
        return Score(values[-1], values if is_process else (), tokens_computed)

    def _remember(self, fresh: Mapping[bytes, Judged]) -> None:
        self._judged.update((key, one) for key, one in fresh.items() if math.isfinite(one.value))
        while len(self._judged) > _MAX_REMEMBERED:
            self._judged.popitem(last=False)


def _keys(tenant: str, tokens: TokenIds, ends: Sequence[int]) -> tuple[bytes, ...]:
    """A key per step, standing for the tenant and all tokens up to the step's end."""
    name = tenant.encode()
    digest = hashlib.blake2b(len(name).to_bytes(8, "little") + name, digest_size=16)
    keys, start = [], 0
    for end in ends:
        digest.update(array("q", tokens[start:end]).tobytes())
        keys.append(digest.digest())
        start = end
    return tuple(keys)
