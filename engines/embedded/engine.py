"""`engines.base.Engine` on the embedded runtime."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
    Delta,
    EngineInfo,
    EngineStats,
    Finish,
    Health,
    Message,
    NextTokens,
    Prefix,
    Prompt,
    Sampling,
    TokenIds,
)
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import Taught
from engines.drafters.shelf import Shelf
from engines.embedded.claims import PageClaim
from engines.embedded.config import read_json
from engines.embedded.items import new_delta, next_tokens
from engines.embedded.jobs import GenerateJob, LastStates, ReadRequest
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.sample import mix
from engines.embedded.sequence import Branch
from engines.errors import ModelLoadError, PromptError, UnsupportedByEngine
from engines.textstop import TextTracker

_CAPABILITIES = frozenset(
    {
        Capability.TOKENS,
        Capability.LOGPROBS,
        Capability.NEXT_LOGPROBS,
        Capability.SCHEDULE,
        Capability.HIDDEN_STATES,
        Capability.SEED,
        Capability.DRAFTER,
    }
)

_LISTED_ROWS = 64
"""Rows of the vocabulary that are turned into next tokens at a time."""


class EmbeddedEngine:
    """Generates with a local Hugging Face model directory.

    Args:
        model_id: The id on the wire.
        directory: The model directory.
        options: Runtime knobs.

    Raises:
        ModelLoadError: The directory cannot be served.
    """

    def __init__(self, model_id: str, directory: Path, options: RuntimeOptions) -> None:
        self._runtime = Runtime(directory, options, finish_branch=self._continuation)
        steps = read_json(directory / "bough.json") if (directory / "bough.json").exists() else {}
        tokenizer, config = self._runtime.tokenizer, self._runtime.config
        self._tokenizer = tokenizer
        self.info = EngineInfo(
            model_id=model_id,
            context_tokens=self._runtime.context_tokens,
            vocab_size=config.vocab_size,
            eos_ids=config.eos_ids,
            tokenizer_hash=tokenizer.hash,
            parameters=self._runtime.decoder.weights.parameters,
            capabilities=_CAPABILITIES,
            step_delimiters=tuple(steps.get("step_delimiters", ("\n\n",))),
            max_step_tokens=int(steps.get("max_step_tokens", 256)),
        )
        try:
            self._drafters = Shelf.of_model(self.info, directory, options.draft_table)
        except DrafterError as err:
            raise ModelLoadError(directory, f"engine option draft_table: {err}") from err

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """See `Engine.render`."""
        text = self._tokenizer.render(messages, tools=tools, continue_final=continue_final)
        return self._tokenizer.encode(text)

    def encode(self, text: str) -> TokenIds:
        """See `Engine.encode`."""
        return self._tokenizer.encode(text)

    def decode(self, ids: TokenIds) -> str:
        """See `Engine.decode`."""
        return self._runtime_text(ids)

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """See `Engine.parse`; there are no tool or reasoning parsers, so everything is content."""
        return Message(content=text)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """See `Engine.open`."""
        if not isinstance(prompt, tuple):
            raise PromptError("this engine reads token ids; render the conversation first")
        claim = self._runtime.claim(prompt, tenant=tenant, response_start=len(prompt))
        claim.priority = priority
        return claim

    async def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncIterator[Delta | Continuation]:
        """See `Engine.sample`."""
        claim = self._own(prefix)
        self.check_sampling(how)
        if seeds is None:
            root = secrets.randbits(64) if how.seed is None else how.seed
            seeds = [root, *(mix(root, i) for i in range(1, n))]
        if len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        limit, reason = self._limit(claim, how)
        if reason is not None:
            for i in range(n):
                yield self._nothing(claim, reason, i)
            return
        job = GenerateJob(how.deltas)
        job.branches = [self._branch(claim, how, s, limit, job, i) for i, s in enumerate(seeds)]
        self._runtime.worker.submit(job, job.branches)
        remaining = n
        try:
            while remaining:
                await job.news()
                if job.error is not None:
                    raise job.error
                job.undelivered.extend(self._collect(job))
                while job.undelivered:
                    item = job.undelivered.popleft()
                    remaining -= isinstance(item, Continuation)
                    yield item
        finally:
            try:
                await self._runtime.worker.cancel(job)
            finally:  # whoever cancels twice still leaks nothing
                self._discard(job)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        if how.constraint is not None:
            raise UnsupportedByEngine("constraint", self.info.model_id, "leave it out")
        if how.drafter is not None:
            self._drafters.require(how.drafter)
        size = self.info.vocab_size
        for token in (*how.logit_bias, *how.ban_ids):
            if not 0 <= token < size:
                raise UnsupportedByEngine(
                    "logit_bias", self.info.model_id, f"token {token} is not in 0 … {size - 1}"
                )
        if len(how.ban_ids | (self.info.eos_ids if how.min_tokens else frozenset())) >= size:
            raise UnsupportedByEngine(
                "ban_ids", self.info.model_id, f"all {size} tokens are banned: allow some"
            )

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """See `Engine.extend`; the new tokens are computed when they are first needed."""
        claims = [(self._own(prefix), ids) for prefix, ids in pairs]
        for _, ids in claims:
            self._runtime.require_ids(ids)
        return [claim.extend(ids) for claim, ids in claims]

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """See `Engine.next_logprobs`."""
        if sum(option is not None for option in (ids, mass, top_k)) != 1:
            raise ValueError("exactly one of ids, mass and top_k is needed")
        self._runtime.require_ids(ids or ())

        def finish(states: torch.Tensor) -> list[NextTokens]:
            found: list[NextTokens] = []
            for part in torch.split(states, _LISTED_ROWS):
                rows = self._runtime.decoder.logits(part).log_softmax(-1)
                found += next_tokens(rows, ids, mass, top_k)
            return found

        together = LastStates(finish)
        results = await self._runtime.read(
            [self._request(p, len(p.token_ids) - 1, together) for p in prefixes]
        )
        return [result.value for result in results]

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """See `Engine.score`."""
        claim = self._own(prefix)
        self._runtime.require_ids(ids)
        if not ids:
            return ()

        def finish(hidden: torch.Tensor) -> tuple[float, ...]:
            rows = self._runtime.decoder.logits(hidden).log_softmax(-1)
            wanted = torch.tensor(ids, device=rows.device).unsqueeze(1)
            return tuple(rows.gather(1, wanted).squeeze(1).tolist())

        # The last token's own state is not needed: its logits are those of the token after it.
        tokens = claim.token_ids + ids[:-1]
        first = len(claim.token_ids) - 1
        request = ReadRequest(
            claim.tenant, tokens, first, finish, age=claim.age, priority=claim.priority
        )
        logps: tuple[float, ...] = (await self._runtime.read([request]))[0].value
        return logps

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """See `Engine.embed`."""

        def finish(hidden: torch.Tensor) -> npt.NDArray[np.float32]:
            mean: npt.NDArray[np.float32] = hidden.float().mean(0).cpu().numpy()
            return mean

        requests = []
        for prefix, count in zip(prefixes, last_tokens, strict=True):
            size = len(prefix.token_ids)
            requests.append(self._request(prefix, size - min(max(count, 1), size), finish))
        results = await self._runtime.read(requests)
        if not results:
            return np.zeros((0, self._runtime.config.hidden), dtype=np.float32)
        return np.stack([result.value for result in results])

    def taught(self) -> list[Taught]:
        """See `SharesDrafts.taught`."""
        return sorted(self._runtime.worker.drafting.taught.copy(), key=astuple)

    async def draft_snapshot(self, of: Taught) -> bytes:
        """See `SharesDrafts.draft_snapshot`."""

        def snapshot() -> bytes:
            self._runtime.worker.drafting.taught.discard(of)
            return self._drafters[of.drafter].snapshot(tenant=of.tenant)

        return await self._runtime.when_idle(snapshot)

    async def merge_drafts(self, of: Taught, data: bytes) -> None:
        """See `SharesDrafts.merge_drafts`."""
        await self._runtime.when_idle(
            lambda: self._drafters[of.drafter].merge(data, tenant=of.tenant)
        )

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._runtime.stats()

    @property
    def decoded(self) -> tuple[int, int]:
        """Tokens drawn so far, and the steps they were drawn in; their quotient is the batch."""
        worker = self._runtime.worker
        return worker.tokens_decoded, worker.decode_steps

    @property
    def peak_claimed_pages(self) -> int:
        """The most pages claimed at a time since `reset_peak`."""
        return self._runtime.ledger.peak_claimed

    def reset_peak(self) -> None:
        """Start counting `peak_claimed_pages` anew."""
        with self._runtime.ledger.lock:
            self._runtime.ledger.reset_peak()

    def check(self) -> None:
        """Recount all pages.

        Raises:
            InvariantError: The books are wrong.
        """
        with self._runtime.ledger.lock:
            self._runtime.ledger.check()

    @property
    def health(self) -> Health:
        """Ready until its worker has stopped."""
        return Health.DEAD if self._runtime.worker.is_closed else Health.READY

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        await self._runtime.aclose()

    def _runtime_text(self, ids: Sequence[int]) -> str:
        table = self._runtime.token_bytes
        return b"".join(table[i] for i in ids).decode("utf-8", "replace")

    def _own(self, prefix: Prefix) -> PageClaim:
        self._runtime.require_open()
        if not isinstance(prefix, PageClaim):
            raise TypeError(f"a prefix of this engine is needed, not {type(prefix).__name__}")
        if prefix.is_released:
            raise ValueError("the prefix was released; fork it before releasing to go on using it")
        return prefix

    def _limit(self, claim: PageClaim, how: Sampling) -> tuple[int, Finish | None]:
        """Length at which generation stops; with a reason when that is now."""
        size, context = len(claim.token_ids), self.info.context_tokens
        if size >= context:
            return size, Finish.CONTEXT
        limit = context
        if how.max_tokens is not None:
            limit = min(limit, claim.response_start + how.max_tokens)
            if limit <= size:
                return size, Finish.LENGTH
        if how.max_step_tokens is not None:
            limit = min(limit, size + max(1, how.max_step_tokens))
        return limit, None

    def _branch(
        self, claim: PageClaim, how: Sampling, seed: int, limit: int, job: GenerateJob, index: int
    ) -> Branch:
        needles = how.stop or how.boundaries
        position = len(claim.token_ids) - claim.response_start
        tracker = TextTracker(
            self._runtime.token_bytes,
            how.stop,
            how.boundaries,
            claim.answer_bytes if needles else b"",
            stop_after=max(0, how.min_tokens - position),
        )
        return Branch(
            claim.tenant,
            claim.token_ids,
            how=how,
            seed=seed & ((1 << 64) - 1),
            response_start=claim.response_start,
            limit=limit,
            stop_ids=frozenset(
                token
                for token in self.info.eos_ids | how.stop_token_ids
                if 0 <= token < self.info.vocab_size
            ),
            tracker=tracker,
            job=job,
            index=index,
            order=self._runtime.order(claim.priority, claim.age),
            drafter=None if how.drafter is None else self._drafters[how.drafter],
        )

    def _continuation(self, branch: Branch, kept: int) -> Continuation:
        """The result of a retired branch, whose lock becomes the new claim's; needs the lock."""
        finish, matched = branch.finish or (Finish.CANCELLED, None)
        drawn = tuple(branch.tokens[branch.start :])
        claim = PageClaim(
            self._runtime.claims,
            branch.tenant,
            tuple(branch.tokens[: branch.start + kept]),
            branch.response_start,
            self._runtime.token_bytes,
            branch.nodes[-1] if branch.nodes else None,
            branch.cached_tokens,
            branch.order[1],
        )
        claim.priority = -branch.order[0]
        return Continuation(
            prefix=claim,
            token_ids=drawn[:kept],
            text=branch.tracker.text,
            logps=tuple(branch.logps[:kept]),
            finish=finish,
            matched=matched,
            index=branch.index,
            overrun_ids=drawn[kept:],
            top_logps=tuple(branch.top_logps[:kept]) if branch.how.logprobs else None,
            cached_tokens=branch.cached_tokens,
            computed_tokens=branch.computed_tokens,
            drafted=branch.drafted,
            accepted=branch.accepted,
        )

    def _nothing(self, claim: PageClaim, reason: Finish, index: int) -> Continuation:
        return Continuation(claim.fork(), (), "", (), reason, index=index)

    def _collect(self, job: GenerateJob) -> list[Delta | Continuation]:
        """News of a job since the last call."""
        items: list[Delta | Continuation] = []
        with self._runtime.ledger.lock:
            finished, job.finished = job.finished, []
            if job.wants_deltas:
                for branch in job.branches:
                    if (delta := new_delta(branch)) is not None:
                        items.append(delta)
            for branch in finished:
                if branch.result is not None:
                    items.append(branch.result)
                    branch.result = None
                job.branches.remove(branch)
        return items

    def _discard(self, job: GenerateJob) -> None:
        """Release what nobody received."""
        for item in job.undelivered:
            if isinstance(item, Continuation):
                item.prefix.release()
        for branch in job.branches:
            if branch.result is not None:
                branch.result.prefix.release()
                branch.result = None

    def _request(self, prefix: Prefix, read_from: int, finish: Any) -> ReadRequest:
        claim = self._own(prefix)
        return ReadRequest(
            claim.tenant,
            claim.token_ids,
            read_from,
            finish,
            age=claim.age,
            priority=claim.priority,
            claim=claim,
        )


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> EmbeddedEngine:
    """Serve a local model directory.

    Args:
        model_id: The id on the wire.
        model: The directory.
        options: See `RuntimeOptions`.

    Raises:
        ModelLoadError: The directory or an option is wrong.
    """
    return EmbeddedEngine(model_id, Path(model), RuntimeOptions.parse(model, options))
