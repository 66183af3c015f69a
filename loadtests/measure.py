"""From what happened to each request, to numbers that can be compared.

Time zero of a request is its *scheduled* arrival, not when it was sent: a driver that falls behind
must not flatter the server. All times are seconds from the run's start, by one monotonic clock.

==========  ======================================================================================
ttft_s      first answer text - scheduled arrival
tpot_s      (end - first answer text) / (answer tokens - 1), one a request; undefined, and left
            out, below two tokens (vLLM counts 0 there)
itl_s       gaps between chunks of answer text, all of them pooled; never an average of tpot_s,
            which other tools call ITL
latency_s   end - scheduled arrival
service_s   end - sent
queue_s     sent - scheduled arrival: what the driver itself added
==========  ======================================================================================

Latencies are those of requests that completed; errors and incompletes stay in every denominator
(`n`, `ok_ratio`, `requests_per_s`). Percentiles interpolate linearly, as numpy does by default.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

PERCENTILES: Final = (50, 90, 95, 99)
Summary: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One request, as the driver saw it.

    Attributes:
        index: Its number in the schedule.
        strategy: What it asked for.
        scheduled_s: When it should have been sent.
        sent_s: When it was sent.
        ended_s: When its last byte or its failure came; None when the driver gave it up.
        text_times_s: When each chunk of answer text came.
        outcome: `ok` for a whole answer; `error` for a refusal or failure; `incomplete` when the
            driver ended first.
        status: HTTP status; None where there was no reply.
        code: The error's code on the wire, or the client's own word for it.
        answer_tokens: Tokens of the answer by the server's usage; None where it gave none.
        generated_tokens: The same with the search's own tokens.
        prompt_tokens: Tokens of the prompt.
        run_id: The server's id of the run.
        stop_reason: Why the search ended.
    """

    index: int
    strategy: str
    scheduled_s: float
    sent_s: float
    ended_s: float | None
    text_times_s: tuple[float, ...]
    outcome: Literal["ok", "error", "incomplete"]
    status: int | None = None
    code: str | None = None
    answer_tokens: int | None = None
    generated_tokens: int | None = None
    prompt_tokens: int | None = None
    run_id: str | None = None
    stop_reason: str | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `values` lie, linear between neighbours.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a percentile of no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ttft_s(record: Record) -> list[float]:
    """Time to first answer text; nothing for an answer without text."""
    return [time_s - record.scheduled_s for time_s in record.text_times_s[:1]]


def tpot_s(record: Record) -> list[float]:
    """Time per answer token after the first; nothing below two tokens."""
    tokens = record.answer_tokens or 0
    if record.ended_s is None or not record.text_times_s or tokens < 2:
        return []
    return [(record.ended_s - record.text_times_s[0]) / (tokens - 1)]


def itl_s(record: Record) -> list[float]:
    """Gaps between chunks of answer text."""
    times = record.text_times_s
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def latency_s(record: Record) -> list[float]:
    """End to end, from the scheduled arrival."""
    return [] if record.ended_s is None else [record.ended_s - record.scheduled_s]


def service_s(record: Record) -> list[float]:
    """End to end, from when it was sent."""
    return [] if record.ended_s is None else [record.ended_s - record.sent_s]


def queue_s(record: Record) -> list[float]:
    """How late the driver sent it."""
    return [record.sent_s - record.scheduled_s]


METRICS: Final[Mapping[str, Callable[[Record], list[float]]]] = {
    "ttft_s": ttft_s,
    "tpot_s": tpot_s,
    "itl_s": itl_s,
    "latency_s": latency_s,
    "service_s": service_s,
    "queue_s": queue_s,
}


def summarize(records: Sequence[Record], duration_s: float) -> Summary:
    """Counts, rates and percentiles of some records, ready for JSON.

    Args:
        records: Of one strategy, or of all.
        duration_s: From the first scheduled arrival to the last end, of the whole run.

    Returns:
        `n`, `ok`, `errors`, `incomplete`, `ok_ratio`, `errors_by_code`, `requests_per_s`,
        `answer_tokens_per_s`, `generated_tokens_per_s`, and for each of METRICS `NAME_n`, and where
        that is not 0 `NAME_mean`, `NAME_p50` … `NAME_p99`, `NAME_max`.
    """
    whole = [record for record in records if record.outcome == "ok"]
    errors = [record for record in records if record.outcome == "error"]
    summary: Summary = {
        "n": len(records),
        "ok": len(whole),
        "errors": len(errors),
        "incomplete": len(records) - len(whole) - len(errors),
        "ok_ratio": len(whole) / len(records) if records else None,
        "errors_by_code": dict(Counter(_cause(record) for record in errors).most_common()),
        "requests_per_s": _rate(len(whole), duration_s),
        "answer_tokens_per_s": _rate(sum(r.answer_tokens or 0 for r in whole), duration_s),
        "generated_tokens_per_s": _rate(sum(r.generated_tokens or 0 for r in whole), duration_s),
    }
    for name, values_of in METRICS.items():
        summary.update(_statistics(name, [v for record in whole for v in values_of(record)]))
    return summary


def summarize_by_strategy(records: Sequence[Record], duration_s: float) -> dict[str, Summary]:
    """A summary for every strategy in order of name, then `total`."""
    names = sorted({record.strategy for record in records})
    by_name = {
        name: summarize([record for record in records if record.strategy == name], duration_s)
        for name in names
    }
    return {**by_name, "total": summarize(records, duration_s)}


def duration_of(records: Iterable[Record]) -> float:
    """Seconds from the first scheduled arrival to the last end; 0 where nothing ended."""
    seen = list(records)
    ends = [record.ended_s for record in seen if record.ended_s is not None]
    return max(ends) - min(record.scheduled_s for record in seen) if ends else 0.0


def _statistics(name: str, values: Sequence[float]) -> Summary:
    found: Summary = {f"{name}_n": len(values)}
    if values:
        found[f"{name}_mean"] = sum(values) / len(values)
        found |= {f"{name}_p{p}": percentile(values, p) for p in PERCENTILES}
        found[f"{name}_max"] = max(values)
    return found


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None


def _cause(record: Record) -> str:
    return f"{record.status or 'no reply'} {record.code or 'unknown'}"
