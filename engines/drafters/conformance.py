"""The laws that every drafter keeps, as checks that any implementation can run.

    for check in CHECKS:
        check(make)

`make` gives a new drafter each time, for a vocabulary of at least VOCABULARY tokens. They say
nothing of how good the guesses are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final, TypeAlias

from engines.drafters.base import EMPTY, ROOT, Drafter, NodeTops, TokenTree
from engines.drafters.errors import DrafterError

VOCABULARY: Final = 16
Make: TypeAlias = Callable[[], Drafter]
_CYCLE: Final = (3, 1, 4, 5, 9, 2, 6)
_NEXT: Final = dict(zip(_CYCLE, (*_CYCLE[1:], _CYCLE[0]), strict=True))
_TEXT: Final = _CYCLE * 3


class ContractBroken(AssertionError):
    """A drafter broke a law; the message says which, with what was seen."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ContractBroken(what)


def _tops(drafter: Drafter, tree: TokenTree, first: int) -> NodeTops | None:
    """Distributions that a toy target could have given: `first` after the root, then the cycle."""
    if drafter.num_tops == 0:
        return None
    follow = (first, *(_NEXT.get(token, 0) for token in tree.tokens))
    ids = [(token, (token + 5) % VOCABULARY) for token in follow]
    return NodeTops(ids, [(0.75, 0.125)] * len(ids))


def _teach(drafter: Drafter, run: str, tenant: str, text: Sequence[int] = _TEXT) -> None:
    """Live through a run, one token a step, with drafts."""
    drafter.begin(run, text[:4], tenant=tenant)
    for at in range(4, len(text)):
        tree = drafter.propose(text[:at], 8, run=run, tenant=tenant)
        tops = _tops(drafter, tree, text[at])
        drafter.observe(tree, (text[at],), text[:at], tops, run=run, tenant=tenant)


def _check_tree(drafter: Drafter, tree: TokenTree, budget: int) -> None:
    _require(len(tree) <= budget, f"{len(tree)} nodes for a budget of {budget}")
    _require(len(tree.tokens) == len(tree.parents) == len(tree.logps), f"uneven lists: {tree}")
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        _require(ROOT <= parent < node, f"node {node} comes before its parent {parent}")
        _require(0 <= token < VOCABULARY, f"token {token} of {VOCABULARY}")
        above = 0.0 if parent == ROOT else tree.logps[parent]
        _require(tree.logps[node] <= above, f"node {node} is likelier than its parent: {tree}")
        if drafter.shape == "chain":
            _require(parent == node - 1, f"a chain that forks: {tree.parents}")
    _require(len(tree.children) == len(tree), f"siblings with the same token: {tree}")


def proposals_are_trees_within_the_budget(make: Make) -> None:
    """Parents first, siblings differ, never more than was asked for; also of short contexts."""
    drafter = make()
    for tenant in ("a", "b"):
        _teach(drafter, "run", tenant)
    for budget in (0, 1, 3, 32):
        for length in range(len(_TEXT) + 1):
            for run in ("run", "never begun"):
                tree = drafter.propose(_TEXT[:length], budget, run=run, tenant="a")
                _check_tree(drafter, tree, budget)


def what_repeats_is_drafted(make: Make) -> None:
    """In a text that repeats itself, the next token is among the drafts."""
    drafter = make()
    _teach(drafter, "run", "a", _TEXT * 2)
    tree = drafter.propose(_TEXT * 2 + _TEXT[:4], 8, run="run", tenant="a")
    _require((ROOT, 9) in tree.children, f"9 always came after 5, drafted: {tree}")


def proposing_teaches_nothing(make: Make) -> None:
    """The same question has the same answer, however often others were asked."""
    drafter = make()
    _teach(drafter, "run", "a")
    first = drafter.propose(_TEXT, 16, run="run", tenant="a")
    for length in range(len(_TEXT)):
        drafter.propose(_TEXT[:length], 8, run="run", tenant="a")
    again = drafter.propose(_TEXT, 16, run="run", tenant="a")
    _require(first == again, f"{first} became {again}")


def only_the_reach_is_read(make: Make) -> None:
    """A caller may pass no more than the last `reach` tokens."""
    drafter = make()
    _teach(drafter, "run", "a")
    if drafter.reach is not None:
        whole = drafter.propose(_TEXT, 16, run="run", tenant="a")
        tail = drafter.propose(_TEXT[-drafter.reach :], 16, run="run", tenant="a")
        _require(whole == tail, f"of the whole context {whole}, of its tail {tail}")


def tenants_are_apart(make: Make) -> None:
    """What one tenant taught changes no other tenant's drafts, not even of the same run id."""
    drafter, alone = make(), make()
    _teach(drafter, "run", "a")
    other = tuple(reversed(_TEXT))
    for one in (drafter, alone):
        _teach(one, "run", "b", other)
    for text in (_TEXT, other):
        for length in range(1, len(text) + 1):
            seen, expected = (
                one.propose(text[:length], 16, run="run", tenant="b") for one in (drafter, alone)
            )
            _require(seen == expected, f"tenant b got {seen}, without tenant a {expected}")


def branches_interleave(make: Make) -> None:
    """Branches of a run may come in any order, from any point of the prompt's continuation."""
    drafter, rng = make(), Random(5)
    branches = [list(_TEXT[:6]) for _ in range(4)]
    drafter.begin("run", _TEXT[:6], tenant="a")
    for _ in range(120):
        context = rng.choice(branches)
        tree = drafter.propose(context, 8, run="run", tenant="a")
        _check_tree(drafter, tree, 8)
        token = rng.randrange(VOCABULARY)
        tops = _tops(drafter, tree, token)
        drafter.observe(tree, (token,), tuple(context), tops, run="run", tenant="a")
        context.append(token)


def forgetting_is_idempotent(make: Make) -> None:
    """A run may be forgotten twice, unknown, or early; a late step of it does no harm."""
    drafter = make()
    drafter.forget("unknown", tenant="a")
    _teach(drafter, "run", "a")
    drafter.forget("run", tenant="a")
    drafter.forget("run", tenant="a")
    _require(drafter.stats().runs == 0, f"a forgotten run is kept: {drafter.stats()}")
    drafter.observe(EMPTY, (1,), _TEXT, None, run="run", tenant="a")
    _check_tree(drafter, drafter.propose(_TEXT, 8, run="run", tenant="a"), 8)


def it_is_bounded(make: Make) -> None:
    """Runs that nobody forgets and tenants without end stay within the stated bound."""
    drafter, rng = make(), Random(7)
    for number in range(150):
        text = [rng.randrange(VOCABULARY) for _ in range(12)]
        _teach(drafter, f"run {number}", f"tenant {number % 90}", text)
        stats = drafter.stats()
        _require(stats.entries <= stats.max_entries, f"run {number}: {stats}")


def lessons_travel(make: Make) -> None:
    """A snapshot merged elsewhere teaches that tenant, and nobody else."""
    drafter, other, fresh = make(), make(), make()
    _teach(drafter, "run", "a")
    other.merge(drafter.snapshot(tenant="a"), tenant="a")
    for length in range(1, len(_TEXT) + 1):
        question = _TEXT[:length]
        known = drafter.propose(question, 1, run="new", tenant="a")
        moved = other.propose(question, 1, run="new", tenant="a")
        _require(known.tokens == moved.tokens, f"drafts {known} there, {moved} here")
        expected = fresh.propose(question, 4, run="new", tenant="b")
        stranger = other.propose(question, 4, run="new", tenant="b")
        _require(stranger == expected, f"tenant b got {stranger}")


def foreign_bytes_are_refused(make: Make) -> None:
    """What is not this drafter's snapshot raises DrafterError and changes nothing.

    Nor is what is packed as it packs, but holds something else: what another version wrote.
    """
    drafter, other = make(), make()
    _teach(drafter, "run", "a")
    _teach(other, "run", "a", tuple(reversed(_TEXT)))
    before = drafter.propose(_TEXT, 8, run="run", tenant="a")
    good = other.snapshot(tenant="a")
    for bad in (b"", b"garbage", good[:-1], good[1:], *_of_another_form(good)):
        try:
            drafter.merge(bad, tenant="a")
        except DrafterError:
            continue
        raise ContractBroken(f"{bad[:20]!r}… was taken for a snapshot")
    _require(drafter.propose(_TEXT, 8, run="run", tenant="a") == before, "garbage taught it")


def _of_another_form(good: bytes) -> Iterator[bytes]:
    """`good` with other things in it, if it is packed as `engines.drafters.opening` does it."""
    try:
        held: dict[str, Any] = json.loads(zlib.decompress(good))
    except (zlib.error, ValueError):
        return
    yield _packed({**held, "kind": f"{held.get('kind')} of another bough"})
    for name, rows in held.items():
        if isinstance(rows, list):
            yield _packed({**held, name: None})
            others: list[object] = [7, "seven", None, [], {}, [7], [[7]], *_other_rows(rows)]
            for wrong in others:
                yield _packed({**held, name: [*rows, wrong]})


def _other_rows(rows: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    for row in rows[:1]:
        yield [*row, 1]
        yield list(row[:-1])
        for at in range(len(row)):
            for wrong in (str(row[at]), None, [None], [float("nan")], [10**400], -7):
                yield [*row[:at], wrong, *row[at + 1 :]]


def _packed(held: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(held).encode())


CHECKS: Final = (
    proposals_are_trees_within_the_budget,
    what_repeats_is_drafted,
    proposing_teaches_nothing,
    only_the_reach_is_read,
    tenants_are_apart,
    branches_interleave,
    forgetting_is_idempotent,
    it_is_bounded,
    lessons_travel,
    foreign_bytes_are_refused,
)
