"""The next token's distribution from SGLang: one token is drawn and its alternatives are read.

More alternatives than there are ids would end the whole worker, so no more are ever asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from engines.base import NextTokens, TokenIds, TopLogps
from engines.errors import EngineClosed
from engines.sglang_child import Terms
from engines.sglang_wire import top_logps
from engines.token_prefix import TokenPrefix

_FIRST_LISTED: Final = 64
_GROWTH: Final = 8


@dataclass(frozen=True)
class NextAsked:
    """Exactly one of: these ids, the nucleus holding `mass`, the `top_k` likeliest."""

    ids: TokenIds | None
    mass: float | None
    top_k: int | None


async def next_tokens(
    terms: Terms,
    prefix: TokenPrefix,
    asked: NextAsked,
    count: Callable[[int, int, int], None],
) -> NextTokens:
    """What may come after `prefix`, at temperature 1.

    Raises:
        EngineClosed: A worker failed, or listed too little.
    """
    size = terms.info.vocab_size
    if asked.ids is not None:
        if not asked.ids:
            return NextTokens((), (), 1.0)
        wanted = sorted(set(asked.ids))
        known = dict(await _listed(terms, prefix, {"token_ids_logprob": wanted}, count))
        if set(known) != set(wanted):
            raise EngineClosed(f"SGLang listed {len(known)} of {len(wanted)} tokens")
        logps = tuple(known[token] for token in asked.ids)
        return NextTokens(asked.ids, logps, _tail(known.values()))
    if asked.mass is None:
        top = min(asked.top_k or 0, size)
        return _cut(await _listed(terms, prefix, {"top_logprobs_num": max(top, 1)}, count), top)
    top = min(_FIRST_LISTED, size)
    while True:
        row = await _listed(terms, prefix, {"top_logprobs_num": top}, count)
        sums = list(accumulate(math.exp(logp) for _, logp in row))
        if sums[-1] >= asked.mass or top == size:
            return _cut(row, 1 + sum(before < asked.mass for before in sums[:-1]))
        top = min(top * _GROWTH, size)


async def _listed(
    terms: Terms,
    prefix: TokenPrefix,
    asked: dict[str, Any],
    count: Callable[[int, int, int], None],
) -> TopLogps:
    """Pairs of one draw at temperature 1, likeliest first, ties by id."""
    body = {
        **asked,
        "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": -1,
    }
    news, meta = await terms.pool.ask(prefix.token_ids, prefix.tenant, body)
    count(news.prompt_tokens, news.cached_tokens, len(news.ids))
    key = "output_token_ids_logprobs" if "token_ids_logprob" in asked else "output_top_logprobs"
    rows = meta.get(key) or []
    if len(rows) != 1:
        raise EngineClosed(f"SGLang sent {len(rows)} rows of {key} for one token")
    return tuple(sorted(top_logps(rows[0]), key=_by_rank))


def _by_rank(pair: tuple[int, float]) -> tuple[float, int]:
    token, logp = pair
    return (-logp, token)


def _cut(row: TopLogps, size: int) -> NextTokens:
    kept = list(row)[:size]
    ids = tuple(pair[0] for pair in kept)
    logps = tuple(pair[1] for pair in kept)
    return NextTokens(ids, logps, _tail(logps))


def _tail(logps: Any) -> float:
    return max(0.0, 1.0 - math.fsum(math.exp(logp) for logp in logps))
