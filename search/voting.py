"""Letting branches vote: candidates that state equivalent answers stand together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from search.answers import extract_answer
from search.base import Ranked
from search.branch import Branch
from search.select import INVALID, Group, order_by_vote, vote


async def groups_of(branches: Sequence[Branch], weights: Sequence[float]) -> list[Group]:
    """Groups of equivalent answers, heaviest first; the one that states no answer comes last."""
    answers = [extract_answer(one.whole_text) for one in branches]
    return await asyncio.to_thread(vote, answers, weights)  # algebra may take its time


def ranked_by(
    groups: Sequence[Group], branches: Sequence[Branch], weights: Sequence[float]
) -> list[Ranked]:
    """Every branch, heaviest group first; its score is the group's share of all votes."""
    total = sum(weights) or 1.0
    share = {at: group.weight / total for group in groups for at in group.members}
    order = order_by_vote(groups, weights)
    return [Ranked(branches[at], round(share[at], 5)) for at in order]


def tally(groups: Sequence[Group]) -> list[float]:
    """The votes of every answer, most first; of texts that state none, nothing."""
    return [group.weight for group in groups if group.answer != INVALID]
