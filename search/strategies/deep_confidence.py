"""Deep confidence: answers that the model doubted itself are given up early and do not vote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar

from pydantic import Field

from engines.base import Capability, Sampling
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.confidence import Measure, bar_of, confidence_of, token_confidences, window_for
from search.search import Search
from search.select import Group
from search.voting import groups_of, ranked_by, tally


class DeepConfidenceParams(Params):
    """Parameters of `deep_confidence`."""

    width: int = Field(default=16, ge=1, le=1024, description="Answers to draw, finished or not.")
    warmup: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Answers drawn to the end first, which set the bar for the others; half of "
        "`width` by default. With `width` or more none is stopped early.",
    )
    keep_ratio: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of the warm-up's answers that reach the bar, the most confident ones.",
    )
    consensus: float = Field(
        default=0.95,
        gt=0.5,
        le=1,
        description="Stop drawing when one answer has this share of the weighted votes.",
    )
    measure: Measure = Field(
        default="lowest",
        description="Confidence of an answer, its weight in the vote: of its least confident "
        "window (lowest), of the lowest tenth of its windows (bottom), of its last window (tail), "
        "or of all its tokens (mean).",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Tokens of a window; by default an eighth of the warm-up's median answer, "
        "from 16 to 2048.",
    )
    alternatives: int = Field(
        default=5,
        ge=1,
        le=20,
        description="Likeliest tokens whose log-probabilities make a token's confidence.",
    )


@dataclass(frozen=True)
class DeepConfidence:
    """Stop answers that fall below the confidence of the first ones; let the rest vote by weight.

    Source: Fu et al., "Deep Think with Confidence", arXiv 2508.15260, Algorithms 1 and 2, and its
    code.
    Differs: an answer is looked at whenever it has grown by a window, so that it may run on for up
    to a window after it fell below the bar; the consensus is looked for at the same moments, all
    answers at once; the default window follows the length of the answers, since the paper's 2048
    tokens are longer than most; five alternatives a token by default instead of twenty; half the
    width warms up instead of 16.
    """

    params: DeepConfidenceParams
    name: ClassVar[str] = "deep_confidence"
    Params: ClassVar[type[DeepConfidenceParams]] = DeepConfidenceParams
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGPROBS, Capability.CONTINUE_TEXT}
    )
    needs_judge: ClassVar[bool] = False

    async def run(self, search: Search) -> Outcome:
        """Warm up, set the bar, draw the others window by window, vote."""
        width = self.params.width
        warmup = min(width, self.params.warmup or math.ceil(width / 2))
        how = self._sampling(search)
        fresh = max(0, warmup - len(search.given))
        drawn = await search.expand(search.root, fresh, how, last=warmup == width)
        first = _finished([*search.given, *drawn])
        window = self.params.window or window_for([one.num_tokens for one in first])
        bar = self._bar(first, window, self.params.measure)
        left = width - len(search.given) - len(drawn)
        more: list[Branch] = []
        if first and left > 0 and not await self._agree(first, window, bar):
            more = await self._stoppable(search, left, first, replace(how, max_step_tokens=window))
        samples = _finished([*first, *more])
        groups, voters, weights = await self._votes(samples, window, bar)
        others = [Ranked(one, 0.0) for one in samples if one not in voters]
        return search.outcome([*ranked_by(groups, voters, weights), *others])

    async def _stoppable(
        self, search: Search, left: int, first: list[Branch], how: Sampling
    ) -> list[Branch]:
        """The answers that stayed above the bar to their end, until most of the votes agree."""
        window = how.max_step_tokens or 1
        lowest = self._bar(first, window, "lowest")
        bar = self._bar(first, window, self.params.measure)
        ended: list[Branch] = []
        counts = [(search.root, left)]
        while counts:
            children = await search.expand_all(counts, how, last=True)
            fallen = {one for one in children if self._confidence(one, window, "lowest") < lowest}
            search.prune(sorted(fallen, key=lambda one: one.id), "less confident than the bar")
            ended += [one for one in children if one.finish is not None and one not in fallen]
            growing = [one for one in children if one.finish is None and one not in fallen]
            if growing and await self._agree([*first, *_finished(ended)], window, bar):
                search.prune(growing, "the others agree")
                break
            counts = [(one, 1) for one in growing]
        return ended

    async def _agree(self, samples: list[Branch], window: int, bar: float) -> bool:
        """Whether one answer has so large a share of the votes that no more are drawn."""
        groups, _, weights = await self._votes(samples, window, bar)
        votes = tally(groups)
        return bool(votes) and votes[0] >= self.params.consensus * sum(weights)

    async def _votes(
        self, samples: list[Branch], window: int, bar: float
    ) -> tuple[list[Group], list[Branch], list[float]]:
        """The votes, with those who have one and their weights: who reaches the bar, or all."""
        weights = self._weights(samples, window, self.params.measure)
        kept = [at for at, weight in enumerate(weights) if weight >= bar] or range(len(samples))
        voters, sure = [samples[at] for at in kept], [weights[at] for at in kept]
        return await groups_of(voters, sure), voters, sure

    def _bar(self, first: list[Branch], window: int, measure: Measure) -> float:
        weights = self._weights(first, window, measure)
        return bar_of(weights, self.params.keep_ratio) if weights else 0.0

    def _weights(self, samples: list[Branch], window: int, measure: Measure) -> list[float]:
        """The confidence of each; where nobody reported it, that of an ordinary one."""
        found = [self._confidence(one, window, measure) for one in samples]
        known = [one for one in found if not math.isnan(one)]
        ordinary = round(median(known), 5) if known else 1.0
        return [ordinary if math.isnan(one) else one for one in found]

    def _confidence(self, branch: Branch, window: int, measure: Measure) -> float:
        tokens = token_confidences(branch.top_logps or (), self.params.alternatives)
        return confidence_of(tokens, window, measure)

    def _sampling(self, search: Search) -> Sampling:
        """The request's sampling, with as many alternatives as it or the confidence wants."""
        wanted = max(self.params.alternatives, search.sampling.logprobs or 0)
        return replace(search.sampling, logprobs=wanted)


def _finished(samples: Sequence[Branch]) -> list[Branch]:
    """Those that ended by themselves; where none did, all."""
    return [one for one in samples if one.is_finished] or list(samples)
