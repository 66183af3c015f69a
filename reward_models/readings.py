"""Candidates laid out in tokens, and the values of those that were judged: no tensors, no engine.

Every step is remembered by a key that stands for its tenant and all tokens up to its end, so a
branch that went on, a sibling that shares steps, and the same answer again are told from what is
new. Values that are not finite are not remembered.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engines.base import TokenIds
from engines.errors import PromptError
from reward_models.base import Candidate, RewardInfo, RewardKind, Score
from reward_models.layouts import Layout

_MAX_REMEMBERED: Final = 1 << 17


class Judged(NamedTuple):
    """What is remembered of a step: its value, and the answer's log-probability up to its end."""

    value: float
    logp: float = 0.0


@dataclass(frozen=True)
class Reading:
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

    @property
    def num_known(self) -> int:
        """Leading ends whose values are remembered."""
        known = (i for i, key in enumerate(self.keys) if key not in self.known)
        return next(known, len(self.keys))


class Readings:
    """Lays candidates out and remembers what they were worth.

    Args:
        info: Of the judge.
        layout: What it reads.
        context_tokens: The most tokens that it can read.
    """

    def __init__(self, info: RewardInfo, layout: Layout, context_tokens: int) -> None:
        self.layout = layout
        self._info = info
        self._context_tokens = context_tokens
        self._judged: OrderedDict[bytes, Judged] = OrderedDict()

    def __len__(self) -> int:
        """Steps that are remembered."""
        return len(self._judged)

    def lay_out(
        self, candidate: Candidate, tenant: str, claimed: TokenIds | None
    ) -> Reading | None:
        """A candidate in tokens; None when it cannot be read.

        Args:
            candidate: The answer.
            tenant: Whose it is.
            claimed: The prompt's tokens, where a claim has them.
        """
        try:
            laid = self.layout.lay_out(candidate.messages, candidate.steps, claimed)
        except PromptError:
            return None
        if len(laid.tokens) > self._context_tokens:
            return None
        ends = tuple(end for end in laid.ends if end)
        keys = _keys(tenant, laid.tokens, ends)
        known = {key: self._judged[key] for key in keys if key in self._judged}
        num_blank = len(laid.ends) - len(ends)
        return Reading(tenant, laid.tokens, laid.start, ends, keys, known, num_blank)

    def score(
        self,
        reading: Reading | None,
        fresh: Mapping[bytes, Judged],
        computed: MutableMapping[bytes, int],
    ) -> Score:
        """A candidate's score from what was known and what has just been judged.

        Args:
            reading: The candidate; None scores NaN.
            fresh: New values.
            computed: Tokens run by last key. Of equal candidates the first one pays: its entry is
                taken out.
        """
        if reading is None:
            return Score(math.nan)
        low = self._info.low
        if not reading.ends:
            return Score(low, (low,) * reading.num_blank)
        judged = [fresh[key] if key in fresh else reading.known[key] for key in reading.keys]
        values = (low,) * reading.num_blank + tuple(step.value for step in judged)
        is_process = self._info.kind is RewardKind.PROCESS
        tokens_computed = computed.pop(reading.keys[-1], 0)
        return Score(values[-1], values if is_process else (), tokens_computed)

    def remember(self, fresh: Mapping[bytes, Judged]) -> None:
        """Keep finite values, within bounds."""
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
