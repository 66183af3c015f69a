"""Between the worker and its drafters: who is asked, and what they are told. No tensors.

All branches of a request are one run, so they learn from each other. A drafter hears of every
token once: with the distributions along its draft after a step that verified one, else in passing,
before it is asked again or when the branch has ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from engines.base import TokenIds
from engines.drafters.base import EMPTY, Drafter, NodeTops, TokenTree
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import Taught
from engines.embedded.draft_budget import DraftBudget, Trust
from engines.embedded.sequence import Branch

_log = logging.getLogger(__name__)
_MAX_RUNS: Final = 256
_RunKey: TypeAlias = tuple[str, str, str]  # drafter, tenant, run


@dataclass(frozen=True)
class Verified:
    """What a step made of one branch's tree.

    Attributes:
        branch: Whose.
        tree: What was verified.
        nodes: Those that were kept.
        emitted: What the branch said, `nodes` and one more token, or less where it ended.
        tops: The model's likeliest tokens at the root and at every node, if they were asked for.
    """

    branch: Branch
    tree: TokenTree
    nodes: Sequence[int]
    emitted: TokenIds
    tops: NodeTops | None


class Drafting:
    """Asks and teaches the drafters of one worker, on its thread.

    Args:
        budget: How many nodes are worth verifying.
        vocab_size: Of the model; drafters of other ids are not believed.
    """

    def __init__(self, budget: DraftBudget, vocab_size: int) -> None:
        self.budget = budget
        self._vocab_size = vocab_size
        self.taught: set[Taught] = set()
        """Whose lessons have changed; whoever shares them takes them out."""
        self._runs: OrderedDict[_RunKey, tuple[Drafter, Trust]] = OrderedDict()

    def propose(self, branches: Sequence[Branch]) -> list[TokenTree] | None:
        """A tree for every branch, some empty; None when it is not worth it now."""
        nodes = self.budget.ask()
        drafting = [branch for branch in branches if branch.drafter is not None]
        if not nodes or not drafting:
            return None
        is_trial = self.budget.is_trying
        is_probe = self.budget.is_resting and len(drafting) > 1
        one = is_trial or is_probe
        started = time.thread_time()
        asked = [self._ask(branch, nodes) for branch in (drafting[:1] if one else drafting)]
        self.budget.asked(time.thread_time() - started, len(asked))
        chances = [[min(1.0, trust * math.exp(p)) for p in tree.logps] for tree, trust in asked]
        if is_trial:
            if not chances[0]:
                return None  # nothing to try it with yet
            asked += [(EMPTY, 1.0)] * (len(drafting) - 1)
            keep = [self.budget.attempt(len(chances[0])), *([0] * (len(drafting) - 1))]
        elif is_probe:
            self.budget.probe(chances[0], len(drafting), len(branches))
            return None
        else:
            keep = self.budget.cut(chances, len(branches))
        if not any(keep):
            return None
        trees = (tree.cut(count) for (tree, _), count in zip(asked, keep, strict=True))
        return [EMPTY if branch.drafter is None else next(trees) for branch in branches]

    def _ask(self, branch: Branch, nodes: int) -> tuple[TokenTree, float]:
        left = branch.limit - len(branch.tokens)
        if branch.drafter is None or left < 2:  # the last token needs no draft
            return EMPTY, 1.0
        with _harmless(branch):
            drafter, trust = self._caught_up(branch)
            context = branch.tokens if drafter.reach is None else branch.tokens[-drafter.reach :]
            tree = drafter.propose(context, nodes, run=_run(branch), tenant=branch.tenant)
            _check(tree, self._vocab_size)
            return _shallow(tree, left - 1), trust.ratio
        return EMPTY, 1.0

    def _caught_up(self, branch: Branch) -> tuple[Drafter, Trust]:
        """A branch's drafter, which now knows all that it said, and how far it is believed."""
        found = self._record(branch)
        drafter, tokens, seen = found[0], branch.tokens, branch.observed
        if seen < len(tokens):
            context, new = self._context(branch), tokens[seen:]
            drafter.observe(EMPTY, new, context, run=_run(branch), tenant=branch.tenant)
            branch.observed = len(tokens)
            self.taught.add(Taught(branch.how.drafter or "", branch.tenant))
        return found

    def _record(self, branch: Branch) -> tuple[Drafter, Trust]:
        """The run's; its first branch's tokens are what the drafter reads as its prompt."""
        run, tenant = _run(branch), branch.tenant
        key = (branch.how.drafter or "", tenant, run)
        found = self._runs.get(key)
        if found is not None:
            self._runs.move_to_end(key)
            return found
        assert branch.drafter is not None
        branch.drafter.begin(run, branch.tokens, tenant=tenant)
        branch.observed = len(branch.tokens)
        found = self._runs[key] = branch.drafter, Trust()
        if len(self._runs) > _MAX_RUNS:
            (_, tenant, gone), (old, _) = self._runs.popitem(last=False)
            old.forget(gone, tenant=tenant)
        return found

    def verified(self, results: Sequence[Verified]) -> None:
        """Teach what a step with drafts showed; the branches have their new tokens already."""
        started = time.thread_time()
        for result in results:
            branch = result.branch
            if branch.drafter is not None and len(result.tree):
                with _harmless(branch):
                    self._teach(result)
        self.budget.taught(time.thread_time() - started)

    def _teach(self, result: Verified) -> None:
        branch = result.branch
        drafter, trust = self._record(branch)
        drafter.observe(
            result.tree,
            result.emitted,
            self._context(branch),
            result.tops,
            run=_run(branch),
            tenant=branch.tenant,
        )
        branch.observed = len(branch.tokens)
        self.taught.add(Taught(branch.how.drafter or "", branch.tenant))
        trust.learn(sum(map(math.exp, result.tree.logps)), len(result.nodes))

    def ended(self, branch: Branch) -> None:
        """Tell the drafter the rest of what a branch said, unless drafts are not worth it."""
        if branch.drafter is not None and not self.budget.is_resting:
            with _harmless(branch):
                self._caught_up(branch)

    @staticmethod
    def _context(branch: Branch) -> Sequence[int]:
        """What a branch's drafter has heard of, as much as it reads."""
        assert branch.drafter is not None
        reach, seen = branch.drafter.reach, branch.observed
        return branch.tokens[0 if reach is None else max(0, seen - reach) : seen]


@contextmanager
def _harmless(branch: Branch) -> Iterator[None]:
    """A drafter that fails costs its branch the drafts, and nobody an answer."""
    try:
        yield
    except Exception:
        _log.exception("drafter %r failed; the answer goes on without it", branch.how.drafter)
        branch.drafter = None


def _run(branch: Branch) -> str:
    """Name of the request that a branch belongs to: the age of its claims."""
    return str(branch.order[1])


def _check(tree: TokenTree, vocab_size: int) -> None:
    """Refuse what the step of a whole batch would fail by.

    Raises:
        DrafterError: A token that the model has not, or a log-probability that is none.
    """
    strange = [token for token in tree.tokens if not 0 <= token < vocab_size]
    if strange:
        raise DrafterError(f"drafted tokens {strange[:4]} are not in 0 … {vocab_size - 1}")
    if not all(logp <= 0.0 for logp in tree.logps):
        raise DrafterError(f"log-probabilities of a draft above 0: {max(tree.logps)}")


def _shallow(tree: TokenTree, depth: int) -> TokenTree:
    """`tree` without what is deeper than `depth`; whole where that is nothing."""
    depths = tree.depths
    if not depths or max(depths) <= depth:
        return tree
    kept = [node for node, of_node in enumerate(depths) if of_node <= depth]
    number = {node: at for at, node in enumerate(kept)} | {-1: -1}
    return TokenTree(
        tuple(tree.tokens[node] for node in kept),
        tuple(number[tree.parents[node]] for node in kept),
        tuple(tree.logps[node] for node in kept),
    )
