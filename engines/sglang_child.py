"""One branch grown on SGLang, in as many requests as it takes.

One request is the rule. It takes more when a schedule changes the temperature, and when the server
stops for reasons of its own before the branch is over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from engines.base import Continuation, Delta, EngineInfo, Sampling, TokenIds, TopLogps
from engines.child import TokenChild
from engines.errors import EngineClosed
from engines.sglang_pool import Pool
from engines.sglang_sampling import draws_from_the_model, request_params, temperature_at
from engines.sglang_wire import News, top_logps
from engines.token_prefix import TokenPrefix

_QUIET_INTERVAL = 16
"""Tokens per event where nobody reads deltas."""

Put: TypeAlias = Callable[[Delta | Continuation], None]


@dataclass(frozen=True)
class Terms:
    """What all branches of an engine share.

    Attributes:
        info: The engine's.
        pool: Its workers.
        schedule_pieces: Requests per schedule at most.
    """

    info: EngineInfo
    pool: Pool
    schedule_pieces: int


class Growth:
    """One branch.

    Args:
        index: Its number in the `sample` call.
        prefix: What it continues.
        how: Checked options.
        seed: Its stream; None where the workers honour none.
        terms: The engine's.
        count: Told of every request's cost: prompt, cached and drawn tokens.
    """

    def __init__(
        self,
        index: int,
        prefix: TokenPrefix,
        how: Sampling,
        seed: int | None,
        terms: Terms,
        count: Callable[[int, int, int], None],
    ) -> None:
        self._child = TokenChild(index, prefix, how, terms.info)
        self._prefix = prefix
        self._how = how
        self._seed = seed
        self._terms = terms
        self._count = count
        self._has_logps = how.logps or how.logprobs is not None
        # by whether the worker's logps are those at temperature 1
        self._needs_no_score = [
            not self._has_logps or draws_from_the_model(how, prefix.position, is_raw=is_raw)
            for is_raw in (False, True)
        ]
        self._must_score = not self._needs_no_score[terms.pool.has_raw_logps]
        self._cached: int | None = None
        self._computed = 0

    async def run(self, put: Put) -> None:
        """Grow to the end; deltas as they come, the Continuation last.

        Raises:
            PromptError: A worker refuses a request.
            EngineClosed: A worker failed, or drew nothing.
        """
        child = self._child
        while not child.is_over:
            before = len(child.drawn)
            await self._request(put)
            if not child.is_over and len(child.drawn) == before:
                raise EngineClosed("SGLang ended a request without drawing a token")
        done = child.continuation(cached_tokens=self._cached or 0, computed_tokens=self._computed)
        rest = child.delta() if self._how.deltas else None
        if self._must_score and done.token_ids:
            done, rest = await self._scored(done, rest)
        if rest is not None:
            put(rest)
        put(done)

    async def _request(self, put: Put) -> None:
        child, how = self._child, self._how
        ids = child.token_ids
        body = self._body(ids)
        drawn = 0
        all_news = self._terms.pool.generate(ids, self._prefix.tenant, body)
        async with aclosing(all_news):
            async for news in all_news:
                self._take(news)
                drawn += len(news.ids)
                if how.deltas and not child.is_over and (delta := self._delta()) is not None:
                    put(delta)
                if child.is_over or news.finish is not None:
                    break
        self._settle(news, drawn)

    def _body(self, ids: TokenIds) -> dict[str, Any]:
        child, how, terms = self._child, self._how, self._terms
        pieces = terms.schedule_pieces
        temperature, until = temperature_at(how, child.position, pieces)
        room = child.room if until is None else min(child.room, until - child.position)
        params = request_params(
            child,
            how,
            answer=ids[self._prefix.response_start :],
            room=room,
            temperature=temperature,
            seed=self._seed,
            vocab_size=terms.info.vocab_size,
        )
        body: dict[str, Any] = {"sampling_params": params}
        if not how.deltas:
            params["stream_interval"] = _QUIET_INTERVAL
        if self._has_logps and not self._must_score:
            body |= {"return_logprob": True, "logprob_start_len": -1}
            if how.logprobs:
                body["top_logprobs_num"] = min(how.logprobs, terms.info.vocab_size)
        if terms.pool.priority_sign and self._prefix.priority:
            body["priority"] = terms.pool.priority_sign * self._prefix.priority
        return body

    def _take(self, news: News) -> None:
        child = self._child
        finish = news.finish or {}
        matched = finish.get("matched")
        if isinstance(matched, int):  # one that only the server's tokenizer knows ends answers too
            child.stop_ids |= {matched}
        if not self._needs_no_score[news.is_raw]:  # it may have been started again, and otherwise
            self._must_score = True
        if self._must_score:
            child.feed(news.ids, (0.0,) * len(news.ids))
        elif not self._has_logps:
            child.feed(news.ids, ())
        else:
            if len(news.logps) != len(news.ids):
                raise EngineClosed("SGLang sent tokens without their logprobs")
            child.feed(news.ids, news.logps, news.tops if self._how.logprobs else None)
        if finish.get("type") == "abort":
            child.cancel()
        if self._cached is None:
            self._cached = news.cached_tokens

    def _delta(self) -> Delta | None:
        if not self._must_score:
            return self._child.delta()
        if self._how.logprobs is not None:  # they are not known before the branch is scored
            return None
        delta = self._child.delta()
        return None if delta is None else replace(delta, logps=())

    async def _scored(
        self, done: Continuation, rest: Delta | None
    ) -> tuple[Continuation, Delta | None]:
        """Both with the model's own logps."""
        num_tops = self._how.logprobs or 0
        logps, tops, computed = await score(
            self._terms, self._prefix, done.token_ids, num_tops, self._count
        )
        top_logps_or_none = tops if self._how.logprobs else None
        done = replace(
            done,
            logps=logps,
            top_logps=top_logps_or_none,
            computed_tokens=done.computed_tokens + computed,
        )
        if rest is None or self._how.logprobs is None:
            return done, None if rest is None else replace(rest, logps=())
        start = len(logps) - len(rest.token_ids)
        return done, replace(
            rest, logps=logps[start:], top_logps=tops[start:] if self._how.logprobs else None
        )

    def _settle(self, news: News, drawn: int) -> None:
        self._count(news.prompt_tokens, news.cached_tokens, drawn)
        self._computed += news.prompt_tokens - news.cached_tokens + drawn


async def score(
    terms: Terms,
    prefix: TokenPrefix,
    ids: TokenIds,
    num_tops: int,
    count: Callable[[int, int, int], None],
) -> tuple[tuple[float, ...], tuple[TopLogps, ...], int]:
    """Logps of `ids` after `prefix` at temperature 1, alternatives, and the tokens computed.

    The logps of a prompt cost its cache from their first token on; so they begin with `ids`.
    """
    start = len(prefix.token_ids) - 1
    body: dict[str, Any] = {
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": min(num_tops, terms.info.vocab_size),
    }
    whole = (*prefix.token_ids, *ids)
    news, meta = await terms.pool.ask(whole, prefix.tenant, body)
    count(news.prompt_tokens, news.cached_tokens, 0)
    entries = meta.get("input_token_logprobs") or ()
    logps = tuple(entry[0] for entry in entries[1:])
    if len(logps) != len(ids) or not all(isinstance(logp, float) for logp in logps):
        raise EngineClosed(f"SGLang scored {len(logps)} tokens where {len(ids)} were asked for")
    tops = tuple(map(top_logps, (meta.get("input_top_logprobs") or ())[1:]))
    return logps, tops, news.prompt_tokens - news.cached_tokens
