"""Prometheus metrics, one registry per app.

Counters are moved by requests; gauges of engines, judges and admission are read when somebody
scrapes. Labels take their values from settings and plugins only, never from a request's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as render
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from search.run import Run

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)

router = APIRouter()


class Stats(Protocol):
    """What engines and judges have in common."""

    @property
    def pages_free(self) -> int:
        """Pages holding nothing."""

    @property
    def pages_cached(self) -> int:
        """Pages holding evictable cache."""

    @property
    def pages_claimed(self) -> int:
        """Pages that a claim keeps."""

    @property
    def tokens_computed(self) -> int:
        """Tokens run through the model so far."""


class Metrics:
    """All counters of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        per_strategy = ["strategy"]
        self.requests = self._counter(
            "requests", "Requests by strategy and how they ended", ["strategy", "status"]
        )
        self.request_seconds = Histogram(
            "bough_request_seconds",
            "From arrival to the end of the run",
            per_strategy,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "bough_first_token_seconds",
            "From arrival to the first decided text of a stream",
            per_strategy,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens", per_strategy)
        self.generated_tokens = self._counter(
            "generated_tokens", "Tokens generated, search included", per_strategy
        )
        self.wasted_tokens = self._counter(
            "wasted_tokens",
            "Generated tokens of branches given up or runs unanswered",
            per_strategy,
        )
        self.candidates = self._counter("candidates", "Candidates made", per_strategy)
        self.dropped = self._counter(
            "candidates_dropped", "Candidates whose reward failed or was no number", per_strategy
        )
        self.nfe = self._counter("nfe", "Denoiser evaluations", per_strategy)
        self.drafted_tokens = self._counter(
            "drafted_tokens", "Tokens that drafters proposed and engines verified", per_strategy
        )
        self.accepted_tokens = self._counter(
            "accepted_tokens", "Generated tokens that were drafted", per_strategy
        )
        self.draft_steps = self._counter(
            "draft_steps", "Decode steps of branches of requests with a drafter", per_strategy
        )
        self.reward_calls = self._counter("reward_calls", "Judgements", per_strategy)
        self.reward_tokens = self._counter("reward_tokens", "Tokens judged", per_strategy)
        self.cache = self._counter("response_cache", "Look-ups in the response cache", ["result"])
        self.store_errors = self._counter(
            "store_errors", "Times the store did not answer and was done without", ["what"]
        )

    def count_run(self, strategy: str, run: Run, *, is_answered: bool) -> None:
        """Add what a run has spent; of one that gave no answer every generated token is wasted."""
        spent = run.budget.spent
        wasted_tokens = spent.wasted_tokens if is_answered else spent.generated_tokens
        has_drafter = run.request.sampling.drafter is not None or spent.drafted_tokens > 0
        # a step says one token beside those accepted, as `bough.drafts` has it
        steps = max(0, spent.generated_tokens - spent.accepted_tokens)
        draft_steps = steps if has_drafter else 0
        for counter, amount in (
            (self.prompt_tokens, run.tree.prompt_tokens),
            (self.generated_tokens, spent.generated_tokens),
            (self.wasted_tokens, wasted_tokens),
            (self.candidates, spent.candidates),
            (self.dropped, spent.dropped),
            (self.nfe, spent.nfe),
            (self.drafted_tokens, spent.drafted_tokens),
            (self.accepted_tokens, spent.accepted_tokens),
            (self.draft_steps, draft_steps),
            (self.reward_calls, spent.reward_calls),
            (self.reward_tokens, spent.reward_tokens),
        ):
            counter.labels(strategy).inc(amount)
        for what in run.store_errors:
            self.store_errors.labels(what).inc()

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"bough_{name}", text, labels, registry=self.registry)


class Gauges(Collector):
    """Reads engines, judges and admission at every scrape.

    Args:
        stats: Gives the stats of every engine and judge by id.
        runs: Gives how many runs are in which state.
    """

    def __init__(
        self,
        stats: Callable[[], Mapping[str, Stats]],
        runs: Callable[[], Mapping[str, int]],
    ) -> None:
        self._stats = stats
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Today's values."""
        pages = GaugeMetricFamily(
            "bough_kv_pages", "KV pages by engine or judge", labels=["engine", "state"]
        )
        tokens = CounterMetricFamily(
            "bough_engine_tokens", "Tokens by engine or judge", labels=["engine", "what"]
        )
        sequences = GaugeMetricFamily(
            "bough_engine_sequences", "Sequences by engine", labels=["engine", "state"]
        )
        for name, stats in self._stats().items():
            _add(pages, name, stats, "pages", ("free", "cached", "claimed"))
            _add(tokens, name, stats, "tokens", ("computed", "looked_up", "hit"))
            _add(sequences, name, stats, "", ("running", "waiting"))
        runs = GaugeMetricFamily("bough_runs", "Runs by state", labels=["state"])
        for state, count in self._runs().items():
            runs.add_metric([state], count)
        yield from (pages, tokens, sequences, runs)


def _add(
    family: GaugeMetricFamily | CounterMetricFamily,
    name: str,
    stats: Stats,
    prefix: str,
    fields: Iterable[str],
) -> None:
    for field in fields:
        value = getattr(stats, f"{prefix}_{field}" if prefix else field, None)
        if value is not None:
            family.add_metric([name, field], value)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    kept: Metrics = request.app.state.services.metrics
    return Response(render(kept.registry), media_type=CONTENT_TYPE_LATEST)
