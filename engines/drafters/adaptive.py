"""The drafter to use: suffixes, trigrams and bigrams in one estimate, grown best-first.

What follows a context is estimated from the shortest to the longest thing known about it: the row
of its last token, the row of its last two (both blended from the verified distributions, rejected
nodes included), then the strings that ended like it, among the tenant's outputs and in the run
itself. Each level gives way to the next in the manner of PPM: with n sightings of d different
successors, P = (counts + d * P_shorter) / (n + d). The tree is the best of its size under that.

Source: the corrected algorithm for Liu et al. 2024 (arXiv 2407.12021).
Differs: best-first instead of MCTS; the blending above instead of a plain back-off; rows per tenant
on a frozen base; a row sums to at most 1, and what is missing is mass of tokens not listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engines.drafters.base import EMPTY, DrafterStats, NodeTops, Shape, TokenTree
from engines.drafters.grow import grow
from engines.drafters.opening import build, pack, unpack
from engines.drafters.rows import Frozen, Rows, pair, single
from engines.drafters.runs import Recent
from engines.drafters.trie import Generations, Node, SuffixTrie

_KIND: Final = "adaptive"
_SHARED_NODES: Final = 50_000  # in a snapshot
_LONGEST: Final = 4  # of the matching suffixes, how many are asked
_TRIGRAM_SHARE: Final = 0.75


@dataclass(frozen=True)
class _State:
    """A place in the tree being grown: its last two tokens, and the suffixes that match there."""

    before: int | None
    last: int
    tries: tuple[SuffixTrie, ...]
    nodes: tuple[list[Node], ...]


class _Tenant:
    def __init__(self, rows: Rows, outputs: Generations) -> None:
        self.rows = rows
        self.outputs = outputs


class Adaptive:
    """Learns from accepted tokens, and from verified distributions where the engine has them.

    Args:
        depth: The longest suffix looked at, tokens.
        row_cap: Successors kept in a row.
        step: Weight that an accepted token adds to its rows where no distribution is known.
        rate: Share of a verified distribution in its blended row.
        min_prob: Paths less likely than this are not drafted.
        max_depth: The longest path drafted, tokens.
        max_rows: Rows learnt per tenant.
        max_tenants: Tenants remembered.
        max_tenant_nodes: Suffix nodes per tenant.
        max_runs: Runs remembered.
        max_run_nodes: Suffix nodes per run.
        base: A frozen table under every tenant's rows.
    """

    shape: Shape = "tree"
    num_tops = 8

    def __init__(
        self,
        depth: int = 12,
        row_cap: int = 12,
        step: float = 0.2,
        rate: float = 0.5,
        min_prob: float = 0.01,
        max_depth: int = 24,
        max_rows: int = 65_536,
        max_tenants: int = 32,
        max_tenant_nodes: int = 200_000,
        max_runs: int = 64,
        max_run_nodes: int = 100_000,
        base: Frozen | None = None,
    ) -> None:
        self.reach: int | None = max(depth, 2)
        self._branch = row_cap
        self._step, self._rate = step, min(rate, 1.0)
        self._min_prob, self._max_depth = min_prob, max_depth
        self._max_entries = max_tenants * (max_rows + max_tenant_nodes) + max_runs * max_run_nodes
        self._runs: Recent[tuple[str, str], SuffixTrie] = Recent(
            max_runs, lambda: SuffixTrie(depth, max_run_nodes)
        )
        self._tenants: Recent[str, _Tenant] = Recent(
            max_tenants,
            lambda: _Tenant(Rows(max_rows, row_cap, base), Generations(depth, max_tenant_nodes)),
        )

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """Learn the prompt, for this run only."""
        self._runs.drop((tenant, run))
        self._runs[tenant, run].learn((), prompt)

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """The best tree of this size under what was learnt."""
        if not context or budget_nodes < 1:
            return EMPTY
        owner = self._tenants[tenant]
        local = self._runs.peek((tenant, run))
        tries = (owner.outputs.old, owner.outputs.young, *((local,) if local else ()))
        start = _State(
            context[-2] if len(context) > 1 else None,
            context[-1],
            tries,
            tuple(trie.match(context) for trie in tries),
        )
        return grow(
            start,
            lambda state: self._successors(owner.rows, state),
            _advance,
            budget_nodes=budget_nodes,
            min_prob=self._min_prob,
            max_depth=self._max_depth,
        )

    def _successors(self, rows: Rows, state: _State) -> list[tuple[int, float]]:
        probs = _shares(rows.get(single(state.last)))
        trigram = rows.get(pair(state.before, state.last)) if state.before is not None else None
        if trigram:
            mixed = {token: (1.0 - _TRIGRAM_SHARE) * prob for token, prob in probs.items()}
            for token, prob in _shares(trigram).items():
                mixed[token] = mixed.get(token, 0.0) + _TRIGRAM_SHARE * prob
            probs = mixed if probs else _shares(trigram)
        for nodes in state.nodes:
            # The text's own end is in the trie too, and nothing followed it yet.
            followed = [node for node in nodes[1:] if node.children]
            for node in followed[-_LONGEST:]:
                probs = _blend(probs, node)
        return sorted(probs.items(), key=lambda item: (-item[1], item[0]))[: self._branch]

    def observe(
        self,
        tree: TokenTree,
        emitted: Sequence[int],
        context: Sequence[int],
        tops: NodeTops | None = None,
        *,
        run: str,
        tenant: str,
    ) -> None:
        """Count the new tokens; blend each verified distribution into the rows of its node."""
        owner = self._tenants[tenant]
        self._runs[tenant, run].learn(context, emitted)
        owner.outputs.learn(context, emitted)
        if not context:
            return
        if tops is None:
            text = (*context[-2:], *emitted)
            for at in range(len(text) - len(emitted), len(text)):
                owner.rows.add(single(text[at - 1]), text[at], self._step)
                if at > 1:
                    owner.rows.add(pair(text[at - 2], text[at - 1]), text[at], self._step)
            return
        before = context[-2] if len(context) > 1 else None
        places = [(before, context[-1])]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            places.append((places[parent + 1][1], token))
        for (above, token), ids, probs in zip(places, tops.ids, tops.probs, strict=True):
            owner.rows.blend(single(token), ids, probs, self._rate)
            if above is not None:
                owner.rows.blend(pair(above, token), ids, probs, self._rate)

    def forget(self, run: str, *, tenant: str) -> None:
        """Drop the run's suffixes; what its tenant learnt stays."""
        self._runs.drop((tenant, run))

    def snapshot(self, *, tenant: str) -> bytes:
        """The tenant's rows and outputs."""
        owner = self._tenants[tenant]
        nodes = owner.outputs.dump(_SHARED_NODES)
        return pack(_KIND, {"rows": owner.rows.dump(), "nodes": nodes})

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Add another replica's rows and counts."""
        found = unpack(_KIND, data, "rows", "nodes")
        owner = self._tenants[tenant]
        owner.rows.load(found["rows"])
        owner.outputs.load(found["nodes"])

    def stats(self) -> DrafterStats:
        """Rows and nodes of everybody."""
        entries = sum(trie.num_nodes for trie in self._runs.values())
        for owner in self._tenants.values():
            entries += len(owner.rows) + owner.outputs.num_nodes
        return DrafterStats(len(self._runs), len(self._tenants), entries, self._max_entries)


def _advance(state: _State, token: int) -> _State:
    nodes = tuple(t.advance(n, token) for t, n in zip(state.tries, state.nodes, strict=True))
    return _State(state.last, token, state.tries, nodes)


def _shares(row: Mapping[int, float] | None) -> dict[int, float]:
    """Weights as probabilities; a sum below 1 leaves room for what is not listed."""
    if not row:
        return {}
    total = max(1.0, sum(row.values()))
    return {token: weight / total for token, weight in row.items()}


def _blend(probs: Mapping[int, float], node: Node) -> dict[int, float]:
    """One level of PPM: this string's counts, the shorter ones' estimate for the rest."""
    distinct = len(node.children)
    scale = 1.0 / (node.total + distinct)
    mixed = {token: distinct * scale * prob for token, prob in probs.items()}
    for token, child in node.children.items():
        mixed[token] = mixed.get(token, 0.0) + scale * child.count
    return mixed


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> Adaptive:
    """Options: those of `Adaptive`; instead of `base`, `table`, the path of a saved one."""
    return build(Adaptive, vocab_size, options)
