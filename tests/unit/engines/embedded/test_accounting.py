"""Free list, reservations, sealing, and a recount that notices everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.embedded.accounting import Ledger, PageCounts
from engines.errors import InvariantError

P = 4


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(8, P)


def seal(ledger: Ledger, tokens: tuple[int, ...], tenant: str = "") -> list[int]:
    """Cache `tokens` under the root; the pages come back unlocked."""
    nodes = ledger.seal(tenant, None, tokens, ledger.take(-(-len(tokens) // P)))
    ledger.unlock_path(nodes[-1])
    return [node.page for node in nodes]


def test_pages_come_lowest_first_and_in_line(ledger: Ledger) -> None:
    assert ledger.take(3) == [0, 1, 2]
    ledger.give([1])
    assert ledger.take(2) == [3, 4]
    assert ledger.take(1) == [1]
    ledger.check()


def test_without_a_run_any_pages_will_do(ledger: Ledger) -> None:
    ledger.give(ledger.take(8)[::2])
    assert sorted(ledger.take(3)) == [0, 2, 4]
    assert ledger.take(0) == []
    ledger.check()


def test_a_reservation_counts_as_free_but_is_not_available(ledger: Ledger) -> None:
    pages = ledger.reserve(3)
    assert ledger.counts() == PageCounts(free=8, cached=0, claimed=0)
    assert ledger.available == 5
    ledger.check()
    ledger.use(pages[:1])
    assert ledger.counts() == PageCounts(free=7, cached=0, claimed=1)
    ledger.unreserve(pages[1:])
    assert ledger.available == 7
    ledger.check()


def test_too_many_pages_are_refused_and_nothing_changes(ledger: Ledger) -> None:
    ledger.take(7)
    with pytest.raises(InvariantError, match="2 pages asked for; 1 free"):
        ledger.reserve(2)
    assert ledger.counts() == PageCounts(free=1, cached=0, claimed=7)
    ledger.check()


def test_cached_pages_are_evicted_when_the_free_ones_run_out(ledger: Ledger) -> None:
    seal(ledger, tuple(range(16)))
    assert ledger.counts() == PageCounts(free=4, cached=4, claimed=0)
    assert ledger.available == 8
    assert sorted(ledger.take(7)) == [0, 1, 2, 3, 4, 5, 6, 7][1:]
    assert ledger.counts() == PageCounts(free=0, cached=1, claimed=7)
    ledger.check()


def test_sealing_moves_pages_into_the_trie_and_keeps_one_lock(ledger: Ledger) -> None:
    nodes = ledger.seal("", None, (1, 2, 3, 4, 5), ledger.take(2))
    assert [node.locks for node in nodes] == [1, 1]
    assert ledger.counts() == PageCounts(free=6, cached=0, claimed=2)
    ledger.lock_path(nodes[0])
    more = ledger.seal("", nodes[0], (5, 6, 7, 8, 9), ledger.take(2))
    # The second lock on the first page moved to the end of the new ones: one lock a locked child.
    assert [node.locks for node in (*nodes, *more)] == [2, 1, 1, 1]
    ledger.unlock_path(more[-1])
    assert [node.locks for node in (*nodes, *more)] == [1, 1, 0, 0]
    ledger.check()


def test_sealing_what_is_cached_frees_the_copy(ledger: Ledger) -> None:
    first = ledger.seal("", None, (1, 2, 3, 4, 5), ledger.take(2))
    again = ledger.seal("", None, (1, 2, 3, 4, 5), ledger.take(2))
    assert again == first
    assert ledger.counts() == PageCounts(free=6, cached=0, claimed=2)
    other = ledger.seal("other", None, (1, 2, 3, 4), ledger.take(1))
    assert other[0] is not first[0]
    for node in (first[-1], again[-1], other[-1]):
        ledger.unlock_path(node)
    assert ledger.counts() == PageCounts(free=5, cached=3, claimed=0)
    ledger.check()


def test_sealing_nothing_keeps_the_parents_lock(ledger: Ledger) -> None:
    (node,) = ledger.seal("", None, (1, 2, 3, 4), ledger.take(1))
    assert ledger.seal("", node, (), []) == []
    assert node.locks == 1


def test_sealing_with_the_wrong_number_of_pages_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InvariantError, match="1 pages for 5 tokens of 4 a page"):
        ledger.seal("", None, (1, 2, 3, 4, 5), ledger.take(1))


def test_a_covered_short_page_returns_to_the_free_list(ledger: Ledger) -> None:
    (short,) = ledger.seal("", None, (1, 2), ledger.take(1))
    (longer,) = ledger.seal("", None, (1, 2, 3), ledger.take(1))
    ledger.unlock_path(short)
    assert ledger.counts() == PageCounts(free=7, cached=0, claimed=1)
    ledger.unlock_path(longer)
    ledger.check()


def test_the_peak_counts_claimed_pages_only(ledger: Ledger) -> None:
    ledger.reserve(2)
    assert ledger.peak_claimed == 0
    pages = ledger.take(3)
    ledger.give(pages)
    assert ledger.peak_claimed == 3
    ledger.reset_peak()
    assert ledger.peak_claimed == 0
    cached = seal(ledger, (1, 2, 3, 4, 5))
    ledger.reset_peak()
    ledger.lock_path(ledger.trie.match("", (1, 2, 3, 4, 5)).leaf)
    assert ledger.peak_claimed == len(cached) == 2


def lose_a_page(ledger: Ledger) -> None:
    ledger._free.pop()


def free_a_cached_page(ledger: Ledger) -> None:
    ledger._free.append(next(ledger.trie.walk()).page)


def swap_a_cached_page_for_a_free_one(ledger: Ledger) -> None:
    next(ledger.trie.walk()).page = ledger._free[0]


def cache_a_page_twice(ledger: Ledger) -> None:
    ledger.trie.insert("", None, (9,), next(ledger.trie.walk()).page)


def forget_a_lock(ledger: Ledger) -> None:
    next(node for node in ledger.trie.walk() if node.locks).locks = 0


def miscount_locked(ledger: Ledger) -> None:
    ledger.trie.num_locked += 1


def miscount_nodes(ledger: Ledger) -> None:
    ledger.trie.num_nodes -= 1


def give_twice(ledger: Ledger) -> None:
    ledger.give([7])


def unreserve_twice(ledger: Ledger) -> None:
    ledger.num_reserved -= 1
    ledger._num_own += 1


def lock_a_child_only(ledger: Ledger) -> None:
    # Two locked children need two locks above them.
    root = next(node for node in ledger.trie.walk() if node.locks)
    for first in (8, 9):
        child, _ = ledger.trie.insert("", root, (first,), ledger.take(1)[0])
        ledger._num_own -= 1
        ledger.lock_path(child)
    root.locks = 1


@pytest.mark.parametrize(
    "corrupt",
    [
        lose_a_page,
        free_a_cached_page,
        swap_a_cached_page_for_a_free_one,
        cache_a_page_twice,
        forget_a_lock,
        miscount_locked,
        miscount_nodes,
        give_twice,
        unreserve_twice,
        lock_a_child_only,
    ],
)
def test_the_recount_notices(ledger: Ledger, corrupt: Callable[[Ledger], None]) -> None:
    ledger.seal("", None, (1, 2, 3, 4), ledger.take(1))
    seal(ledger, (5, 6, 7, 8))
    ledger.check()
    corrupt(ledger)
    with pytest.raises(InvariantError):
        ledger.check()


def test_a_full_pool_frees_neighbours_together() -> None:
    ledger = Ledger(64 * P, P)
    for branch in range(64):  # each caches one run of P pages
        tokens = tuple(range(branch * 100, branch * 100 + P * P))
        nodes = ledger.seal("", None, tokens, ledger.take(P))
        ledger.unlock_path(nodes[-1])
    first = ledger.reserve(3)
    assert first == [0, 1, 2], "a run, of what was forgotten first"
    assert ledger.counts().free == 64 * P // 32, "a slab went, and no more"
    assert ledger.reserve(3) == [3, 4, 5]
    ledger.unreserve(first)
    ledger.check()


def test_a_lone_page_leaves_the_runs_alone(ledger: Ledger) -> None:
    assert ledger.take_apart() == 7
    assert ledger.take(7) == [0, 1, 2, 3, 4, 5, 6]
    ledger.give([4])
    assert ledger.take_apart() == 4
    ledger.check()
