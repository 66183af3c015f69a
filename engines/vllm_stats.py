"""What vLLM tells of itself, as `EngineStats`. Its interface is declared unstable: only this file
knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from engines.base import EngineStats


@dataclass
class Tally:
    """Sums and last values of one engine core."""

    running: int = 0
    waiting: int = 0
    usage: float = 0.0
    tokens_computed: int = 0
    tokens_looked_up: int = 0
    tokens_hit: int = 0
    num_preempted: int = 0
    num_drafts: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Drafting:
    """Counters of speculative decoding, over all requests, ended or not.

    Attributes:
        chains: Drafts verified, one for a row and a step.
        drafted: Tokens in them.
        accepted: Of these, those that the model drew as well.
    """

    chains: int
    drafted: int
    accepted: int


@dataclass
class Meter:
    """Sums over the engine cores of all data-parallel ranks.

    Attributes:
        tallies: By rank.
        num_pages: KV blocks of one rank.
        page_tokens: Tokens of a block.
    """

    tallies: dict[int, Tally] = field(default_factory=dict)
    num_pages: int = 0
    page_tokens: int = 0

    def factory(self) -> Callable[[Any, int], Any]:
        """What vLLM wants for ``stat_loggers``."""

        def make(vllm_config: Any, rank: int) -> _Logger:
            return _Logger(self.tallies.setdefault(rank, Tally()))

        return make

    def stats(self) -> EngineStats:
        """Gauges and counters. Cached blocks that nobody uses count as free: vLLM does not tell."""
        tallies = self.tallies.values()
        claimed = sum(round(tally.usage * self.num_pages) for tally in tallies)
        return EngineStats(
            pages_free=self.num_pages * max(1, len(self.tallies)) - claimed,
            pages_claimed=claimed,
            page_tokens=self.page_tokens,
            tokens_computed=sum(tally.tokens_computed for tally in tallies),
            tokens_looked_up=sum(tally.tokens_looked_up for tally in tallies),
            tokens_hit=sum(tally.tokens_hit for tally in tallies),
            running=sum(tally.running for tally in tallies),
            waiting=sum(tally.waiting for tally in tallies),
        )

    @property
    def num_preempted(self) -> int:
        """Requests that lost their pages and were computed again."""
        return sum(tally.num_preempted for tally in self.tallies.values())

    @property
    def drafting(self) -> Drafting:
        """What was drafted so far."""
        tallies = self.tallies.values()
        return Drafting(
            chains=sum(tally.num_drafts for tally in tallies),
            drafted=sum(tally.drafted for tally in tallies),
            accepted=sum(tally.accepted for tally in tallies),
        )

    def nothing_runs(self) -> None:
        """Forget the gauges: the engine cores are gone."""
        for tally in self.tallies.values():
            tally.running = tally.waiting = 0
            tally.usage = 0.0


class _Logger(StatLoggerBase):  # type: ignore[misc]  # vLLM may be missing
    """Adds one engine core's reports to its tally."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """One step of the engine core."""
        tally = self._tally
        if scheduler_stats is not None:
            tally.running = scheduler_stats.num_running_reqs
            tally.waiting = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
            tally.usage = scheduler_stats.kv_cache_usage
            tally.tokens_looked_up += scheduler_stats.prefix_cache_stats.queries
            tally.tokens_hit += scheduler_stats.prefix_cache_stats.hits
            drafts = scheduler_stats.spec_decoding_stats
            if drafts is not None:
                tally.num_drafts += drafts.num_drafts
                tally.drafted += drafts.num_draft_tokens
                tally.accepted += drafts.num_accepted_tokens
        if iteration_stats is not None:
            tally.tokens_computed += iteration_stats.prompt_token_stats.computed
            tally.tokens_computed += iteration_stats.num_generation_tokens
            tally.num_preempted += iteration_stats.num_preempted_reqs
