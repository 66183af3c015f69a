"""The drafter to use: everything known about a context in one estimate, grown best-first.

Voices estimate what follows, from the most specific to the least: what came after the same last 8
to 1 tokens the last time in this run, and after the last one alone; counts by the tenant's last 3
to 1 tokens; the model's own distribution when it last stood after those, on rejected nodes too.
Each gets a share of the probability and leaves the rest to the next; shares are learnt by tenant
from every token that comes (`contexts.Trust`). The tree is the best of its size under that.

Source: the corrected algorithm for Liu et al. 2024 (arXiv 2407.12021); overwriting by verified
distributions as in Token Recycling (arXiv 2408.08696), for longer contexts too.
Differs: best-first instead of MCTS; a learnt mixture instead of a plain back-off; rows per tenant
on a frozen base. No text is matched again at a step: a context is a key of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from engines.base import TokenIds
from engines.drafters.base import EMPTY, DrafterStats, Shape, TokenTree
from engines.drafters.contexts import FULLNESS, Contexts, Trust, Voice, read_cases, read_rows
from engines.drafters.foreign import reading
from engines.drafters.grow import grow
from engines.drafters.lessons import Learner, Lesson
from engines.drafters.opening import build, pack, unpack
from engines.drafters.rows import Frozen
from engines.drafters.runs import Recent

_KIND: Final = "adaptive/1"
_SHARED_ROWS: Final = 20_000  # in a snapshot
_LENGTHS: Final = (8, 6, 4, 3, 2, 1)
"""Of contexts whose last successor in the run is kept, longest first."""
_COUNTED: Final = (3, 2, 1)
"""Of contexts with rows, longest first."""
_REACH: Final = max(_LENGTHS)
_FIRST: Final = (
    *(0.95, 0.9, 0.8, 0.7, 0.6, 0.3),
    *(0.3 for _ in _COUNTED for _ in range(FULLNESS)),
    *(0.3, 0.3, 0.5),
)
"""Shares of the voices before anything was learnt: the run's, counts by fullness, verified."""
_FIRST_COUNTS: Final = len(_LENGTHS)
_FIRST_VERIFIED: Final = _FIRST_COUNTS + len(_COUNTED) * FULLNESS


class _Tenant:
    def __init__(self, rows: Contexts) -> None:
        self.rows = rows
        self.trust = Trust(_FIRST)


class Adaptive(Learner):
    """Learns from accepted tokens, and from verified distributions where the engine has them.

    Args:
        row_cap: Successors kept in a row.
        min_prob: Paths less likely than this are not drafted.
        max_depth: The longest path drafted, tokens.
        max_rows: Rows learnt per tenant.
        max_tenants: Tenants remembered.
        max_runs: Runs remembered.
        max_run_contexts: Contexts remembered per run.
        base: A frozen table under every tenant's rows.
    """

    shape: Shape = "tree"
    reach: int | None = _REACH
    num_tops = 8

    def __init__(
        self,
        row_cap: int = 12,
        min_prob: float = 0.005,
        max_depth: int = 24,
        max_rows: int = 200_000,
        max_tenants: int = 16,
        max_runs: int = 64,
        max_run_contexts: int = 100_000,
        base: Frozen | None = None,
    ) -> None:
        self._min_prob, self._max_depth = min_prob, max_depth
        self._max_run_contexts = max_run_contexts
        self._max_entries = max_tenants * max_rows + max_runs * max_run_contexts
        self._runs: Recent[tuple[str, str], dict[TokenIds, int]] = Recent(max_runs, dict)
        self._tenants: Recent[str, _Tenant] = Recent(
            max_tenants, lambda: _Tenant(Contexts(max_rows, row_cap, base))
        )

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """Learn the prompt, for this run only; of a very long one the end, so that answers fit."""
        self._runs.drop((tenant, run))
        fits = self._max_run_contexts // (2 * len(_LENGTHS))
        self._remember(self._runs[tenant, run], (), tuple(prompt[-fits:]))

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """The best tree of this size under what was learnt."""
        if not context or budget_nodes < 1:
            return EMPTY
        own = self._tenants[tenant]
        local = self._runs.peek((tenant, run)) or {}
        mix, rows = own.trust.mix, own.rows

        def successors(tail: TokenIds, least: float) -> Iterable[tuple[int, float]]:
            return mix(_voices(rows, local, tail), least).items()

        return grow(
            tuple(context[-_REACH:]),
            successors,
            _advance,
            budget_nodes=budget_nodes,
            min_prob=self._min_prob,
            max_depth=self._max_depth,
        )

    def learn(self, lesson: Lesson) -> None:
        """Count the new tokens, and keep each verified distribution for its node's context."""
        own, local = self._tenants[lesson.tenant], self._runs[lesson.tenant, lesson.run]
        rows = own.rows
        before = tail = tuple(lesson.context[-_REACH:])
        for token in lesson.emitted:
            size = len(tail)
            if size:
                own.trust.learn(list(_voices(rows, local, tail)), token)
            for length in _COUNTED:
                if length <= size:
                    rows.add(tail[size - length :], token)
            tail = _advance(tail, token)
        self._remember(local, before, tuple(lesson.emitted))
        if lesson.tops is None or not before:
            return
        tails = [before]
        for token, parent in zip(lesson.tree.tokens, lesson.tree.parents, strict=True):
            tails.append(_advance(tails[parent + 1], token))
        for tail, ids, probs in zip(tails, lesson.tops.ids, lesson.tops.probs, strict=True):
            rows.verify(tail, _COUNTED, ids, probs)

    def _remember(self, local: dict[TokenIds, int], before: TokenIds, text: TokenIds) -> None:
        """What follows each context in the run now; a full run learns nothing more."""
        if len(local) + len(_LENGTHS) * len(text) > self._max_run_contexts:
            return
        whole = before + text
        for at in range(max(_LENGTHS[-1], len(before)), len(whole)):
            token = whole[at]
            for length in _LENGTHS:
                if length <= at:
                    local[whole[at - length : at]] = token

    def forget(self, run: str, *, tenant: str) -> None:
        """Drop the run's contexts; what its tenant learnt stays."""
        self._runs.drop((tenant, run))

    def snapshot(self, *, tenant: str) -> bytes:
        """The tenant's rows and how far they are trusted."""
        own = self._tenants[tenant]
        return pack(_KIND, {"rows": own.rows.dump(_SHARED_ROWS), "trust": own.trust.dump()})

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Add another replica's rows, and its trust where that rests on more."""
        found = unpack(_KIND, data, "rows", "trust")
        with reading(_KIND):
            rows, cases = read_rows(found["rows"]), read_cases(found["trust"])
        own = self._tenants[tenant]
        own.rows.load(rows)
        own.trust.load(cases)

    def stats(self) -> DrafterStats:
        """Rows and contexts of everybody."""
        entries = sum(len(local) for local in self._runs.values())
        entries += sum(len(own.rows) for own in self._tenants.values())
        return DrafterStats(len(self._runs), len(self._tenants), entries, self._max_entries)


def _advance(tail: TokenIds, token: int) -> TokenIds:
    return (*tail, token)[-_REACH:]


def _voices(rows: Contexts, local: Mapping[TokenIds, int], tail: TokenIds) -> Iterator[Voice]:
    """Estimates of what follows `tail`, the most specific first, looked up when asked for."""
    size = len(tail)
    for number, length in enumerate(_LENGTHS):
        if length <= size and (token := local.get(tail[size - length :])) is not None:
            yield number, {token: 1.0}, 1.0
            break
    if length > 1 and size and (token := local.get(tail[-1:])) is not None:
        yield _FIRST_COUNTS - 1, {token: 1.0}, 1.0
    for number, length in enumerate(_COUNTED):
        if length <= size and (row := rows.get(tail[size - length :])) is not None:
            if row.weights:
                yield _FIRST_COUNTS + number * FULLNESS + row.kind, row.weights, row.scale
            if row.verified:
                yield _FIRST_VERIFIED + number, row.verified, 1.0


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> Adaptive:
    """Options: those of `Adaptive`; instead of `base`, `table`, the path of a saved one."""
    return build(Adaptive, vocab_size, options)
