"""A judge that reads answers on the embedded runtime: the part common to all of them.

A layout says which tokens to read and where to judge, a head what a state is worth. The judge owns
its KV trie, so what answers share is read once however many branches share it, and it remembers the
value of every step it has judged. An answer that grew by a step costs the tokens of that step and
of the template around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.base import ChatMessage
from engines.embedded.claims import PageClaim
from engines.embedded.jobs import ReadRequest
from engines.embedded.runtime import Runtime
from engines.errors import EngineClosed, EngineError
from reward_models.base import Candidate, Claim, RewardInfo, RewardStats, Score
from reward_models.errors import RewardUnavailable
from reward_models.heads import Head
from reward_models.layouts import Layout
from reward_models.readings import Judged, Reading, Readings


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
        self._head = head
        self._readings = Readings(info, layout, runtime.context_tokens)

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`.

        Raises:
            RewardUnavailable: The judge is closed.
        """
        tokens = self._readings.layout.prompt(messages)
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
        scores = [self._readings.score(reading, fresh, computed) for reading in readings]
        self._readings.remember(fresh)
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

    def _lay_out(self, candidate: Candidate) -> Reading | None:
        claim = candidate.claim
        if isinstance(claim, PageClaim):
            return self._readings.lay_out(candidate, claim.tenant, claim.token_ids)
        return self._readings.lay_out(candidate, "", None)

    def _request(self, reading: Reading) -> ReadRequest | None:
        """What must still be run for a candidate; None when every step is remembered."""
        num_known = reading.num_known
        if num_known == len(reading.ends):
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
