"""How step-level searches read their answer out of what they grew."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.base import Outcome, Ranked
from search.branch import Branch
from search.search import Search
from search.select import Aggregate, order_by_vote
from search.voting import groups_of


def worth(search: Search, branch: Branch, how: Aggregate | None) -> float | None:
    """What the judge's values of a branch's steps come to; None without any."""
    value = search.worth(branch, how)
    return None if math.isnan(value) else value


async def by_vote(
    search: Search, ended: Sequence[Branch], others: Sequence[Branch], how: Aggregate | None
) -> Outcome:
    """Every branch that ended by itself votes with its worth; the rest only where none did."""
    voters = [one for one in ended if one.is_finished]
    if not voters:
        rest = [one for one in search.best([*ended, *others]) if one is not search.root]
        return search.outcome([Ranked(one, worth(search, one, how)) for one in rest])
    weights = [worth(search, one, how) or 0.0 for one in voters]
    order = order_by_vote(await groups_of(voters, weights), weights)
    return search.outcome([Ranked(voters[at], weights[at]) for at in order])


def by_worth(
    search: Search, ended: Sequence[Branch], others: Sequence[Branch], how: Aggregate | None
) -> Outcome:
    """Most worth first, those that ended by themselves before the others, ties as given."""
    ranked = [
        Ranked(one, worth(search, one, how)) for one in (*ended, *others) if one is not search.root
    ]
    ranked.sort(key=lambda one: (not one.branch.is_finished, -(one.score or 0.0)))
    return search.outcome(ranked)
