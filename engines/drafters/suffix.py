"""SuffixDecoding: the likeliest continuation of the longest repeated suffixes, as a chain.

Source: Oliaro et al. 2024 (arXiv 2411.04975), as ArcticInference and vLLM run it: a branch's
probability divides by the node's count, which includes the occurrence at the text's end.
Differs: bounded tries of `depth` tokens instead of suffix trees; the outputs of earlier requests
are per tenant, in two generations instead of a queue of requests; they are learnt as they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engines.drafters.base import EMPTY, DrafterStats, Shape, TokenTree, chain
from engines.drafters.foreign import reading
from engines.drafters.lessons import Learner, Lesson
from engines.drafters.opening import build, pack, unpack
from engines.drafters.runs import Recent
from engines.drafters.trie import Generations, Node, SuffixTrie, read_nodes

_KIND: Final = "suffix/1"
_SHARED_NODES: Final = 50_000  # in a snapshot


class Suffix(Learner):
    """A trie per run (prompt and output) and one of outputs per tenant."""

    shape: Shape = "chain"
    num_tops = 0

    def __init__(
        self,
        depth: int = 24,
        factor: float = 1.0,
        min_prob: float = 0.1,
        max_runs: int = 64,
        max_run_nodes: int = 100_000,
        max_tenants: int = 64,
        max_tenant_nodes: int = 200_000,
    ) -> None:
        self.reach: int | None = depth
        self._factor = factor
        self._min_prob = min_prob
        self._max_entries = max_runs * max_run_nodes + max_tenants * max_tenant_nodes
        self._runs: Recent[tuple[str, str], SuffixTrie] = Recent(
            max_runs, lambda: SuffixTrie(depth, max_run_nodes)
        )
        self._tenants: Recent[str, Generations] = Recent(
            max_tenants, lambda: Generations(depth, max_tenant_nodes)
        )

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None:
        """Learn the prompt, for this run only."""
        self._runs.drop((tenant, run))
        self._runs[tenant, run].learn((), prompt)

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        """The chain with the largest sum of probabilities; the run's own wins ties."""
        local, shared = self._runs.peek((tenant, run)), self._tenants.peek(tenant)
        best: tuple[float, list[int], list[float]] = (0.0, [], [])
        for trie in (local, *((shared.young, shared.old) if shared else ())):
            if trie is not None:
                found = self._best(trie.match(context), budget_nodes)
                best = found if found[0] > best[0] else best
        return chain(best[1], [math.log(prob) for prob in best[2]]) if best[1] else EMPTY

    def _best(self, nodes: Sequence[Node], most: int) -> tuple[float, list[int], list[float]]:
        best: tuple[float, list[int], list[float]] = (0.0, [], [])
        for length, node in enumerate(nodes[1:], start=1):
            tokens, probs = self._follow(node, min(most, int(self._factor * length)))
            if tokens and sum(probs) >= best[0]:  # ties: the longer match
                best = (sum(probs), tokens, probs)
        return best

    def _follow(self, node: Node, most: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        probs: list[float] = []
        prob = 1.0
        while len(tokens) < most and node.children:
            token = max(node.children, key=lambda child: node.children[child].count)
            child = node.children[token]
            prob = min(prob, prob * child.count / max(node.count, child.count))
            if prob < self._min_prob:
                break
            tokens.append(token)
            probs.append(prob)
            node = child
        return tokens, probs

    def learn(self, lesson: Lesson) -> None:
        """Count the new tokens, in the run and for the tenant."""
        self._runs[lesson.tenant, lesson.run].learn(lesson.context, lesson.emitted)
        self._tenants[lesson.tenant].learn(lesson.context, lesson.emitted)

    def forget(self, run: str, *, tenant: str) -> None:
        """Drop the run's trie."""
        self._runs.drop((tenant, run))

    def snapshot(self, *, tenant: str) -> bytes:
        """The tenant's outputs, the shortest strings first when they are many."""
        shared = self._tenants.peek(tenant)
        return pack(_KIND, {"nodes": shared.dump(_SHARED_NODES) if shared else []})

    def merge(self, data: bytes, *, tenant: str) -> None:
        """Raise the tenant's counts to another replica's."""
        found = unpack(_KIND, data, "nodes")
        with reading(_KIND):
            nodes = read_nodes(found["nodes"])
        self._tenants[tenant].load(nodes)

    def stats(self) -> DrafterStats:
        """Nodes of all tries."""
        entries = sum(trie.num_nodes for trie in self._runs.values())
        entries += sum(shared.num_nodes for shared in self._tenants.values())
        return DrafterStats(len(self._runs), len(self._tenants), entries, self._max_entries)


def open_drafter(vocab_size: int, options: Mapping[str, Any]) -> Suffix:
    """Options: those of `Suffix`."""
    return build(Suffix, vocab_size, options)
