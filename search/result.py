"""What a run ends with, as plain data for the wire, the benches and the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engines.base import TokenIds, TopLogps
from search.base import Outcome, Ranked, StopReason
from search.budget import Spend
from search.tree import Branch, SearchTree


@dataclass(frozen=True)
class Answer:
    """One candidate as it may be shown.

    Attributes:
        branch: Its number in the tree.
        content: Its text.
        token_ids: Its tokens; empty for engines that read text only.
        logps: Log-probability of each token in nats.
        top_logps: Alternatives per token, when they were asked for.
        finish_reason: "stop" when it ended by itself, "length" when it was cut.
        score: What the strategy ranked it by.
        num_tokens: Its tokens, named or only counted by an upstream.
    """

    branch: int
    content: str
    token_ids: TokenIds
    logps: tuple[float, ...]
    top_logps: tuple[TopLogps, ...] | None
    finish_reason: Literal["stop", "length"]
    score: float | None
    num_tokens: int = 0


@dataclass(frozen=True)
class TreeStats:
    """The size of a run's tree.

    Attributes:
        nodes: Branches, the root included.
        depth: Steps of the longest branch.
        unique_tokens: Tokens of the prompt and of every step, each once.
        logical_tokens: Tokens that the same leaves would take without sharing: over every branch
            without children, the prompt and all its tokens. Equal to `unique_tokens` for a chain.
        cached_tokens: Tokens of the prompt that the engine already had.
        peak_kv_tokens: The most tokens that claimed paths and children in flight held at one
            time, what they share counted once.
        reused_nodes: Of `nodes`, those that an earlier request stored.
        reused_nfe: Evaluations that these once took.
    """

    nodes: int
    depth: int
    unique_tokens: int
    logical_tokens: int
    cached_tokens: int
    peak_kv_tokens: int
    reused_nodes: int = 0
    reused_nfe: int = 0


@dataclass(frozen=True)
class Asked:
    """What a reward model was asked for.

    Attributes:
        model: Its id.
        calls: Candidates judged.
        tokens: Tokens run through it.
    """

    model: str
    calls: int
    tokens: int


@dataclass(frozen=True)
class Result:
    """The end of a run.

    Attributes:
        run_id: The request's.
        strategy: As requested.
        resolved: What ran: the strategy's name and, after a colon, what it decided.
        stop_reason: "done", or what cut the search short.
        seed: The run's seed.
        score: What the first answer was ranked by.
        spent: Everything that was spent.
        tree: The size of the tree.
        answers: As many distinct answers as the request wanted and the search found, best first.
        candidates: Everything that was ranked, best first.
        prompt_tokens: Tokens of the prompt.
        ignored: Parameters of the request that could not be honoured.
        further: Of what was spent on rewards, what went to judges that parameters name.
    """

    run_id: str
    strategy: str
    resolved: str
    stop_reason: StopReason
    seed: int
    score: float | None
    spent: Spend
    tree: TreeStats
    answers: tuple[Answer, ...]
    candidates: tuple[Answer, ...]
    prompt_tokens: int
    ignored: tuple[str, ...] = ()
    further: tuple[Asked, ...] = ()


def answer_of(ranked: Ranked) -> Answer:
    """A ranked candidate as plain data."""
    branch = ranked.branch
    return Answer(
        branch=branch.id,
        content=branch.text,
        token_ids=branch.token_ids,
        logps=branch.logps,
        top_logps=branch.top_logps,
        finish_reason="stop" if branch.is_finished else "length",
        score=ranked.score,
        num_tokens=branch.num_tokens,
    )


def distinct(outcome: Outcome, wanted: int) -> list[Ranked]:
    """The first `wanted` candidates of different texts, the chosen one first."""
    first = [one for one in outcome.candidates if one.branch is outcome.chosen]
    by_text: dict[str, Ranked] = {}
    for one in (*first, *outcome.candidates):
        by_text.setdefault(one.branch.text, one)
    return list(by_text.values())[:wanted]


def measure(
    tree: SearchTree, cached_tokens: int, peak_kv_tokens: int, reused_nfe: int = 0
) -> TreeStats:
    """The size of a tree."""
    branches = tree.branches
    inner = {branch.parent.id for branch in branches if branch.parent is not None}
    leaves: Sequence[Branch] = [branch for branch in branches if branch.id not in inner]
    return TreeStats(
        nodes=len(branches),
        depth=max(branch.depth for branch in branches),
        unique_tokens=tree.prompt_tokens + sum(one.step.num_gained for one in branches),
        logical_tokens=sum(
            tree.prompt_tokens + sum(one.step.num_gained for one in leaf.lineage) for leaf in leaves
        ),
        cached_tokens=cached_tokens,
        peak_kv_tokens=peak_kv_tokens,
        reused_nodes=sum(one.state is not None and one.state.seed is None for one in branches),
        reused_nfe=reused_nfe,
    )
