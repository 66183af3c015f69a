"""The index of cached pages: matching, locking, covering and eviction."""

from __future__ import annotations

import pytest

from engines.base import TokenIds
from engines.embedded.trie import Match, Node, Trie
from engines.errors import InvariantError

P = 4


def put(trie: Trie, tokens: TokenIds, first_page: int, tenant: str = "") -> list[Node]:
    """Insert all pages of `tokens`, numbered from `first_page`; nothing stays locked."""
    nodes: list[Node] = []
    for i in range(0, len(tokens), P):
        parent = nodes[-1] if nodes else None
        nodes.append(trie.insert(tenant, parent, tokens[i : i + P], first_page + i // P)[0])
    return nodes


@pytest.fixture
def trie() -> Trie:
    return Trie(P)


def test_an_empty_trie_matches_nothing(trie: Trie) -> None:
    assert trie.match("", (1, 2)) == Match()
    assert Match().leaf is None


def test_match_goes_to_the_token_inside_a_page(trie: Trie) -> None:
    nodes = put(trie, (1, 2, 3, 4, 5, 6, 7, 8), 0)
    match = trie.match("", (1, 2, 3, 4, 5, 6, 9, 9))
    assert (match.nodes, match.partial, match.partial_tokens) == ((nodes[0],), nodes[1], 2)
    assert match.length == 6
    assert match.leaf is nodes[1]


def test_match_takes_the_longest_of_siblings_that_begin_alike(trie: Trie) -> None:
    put(trie, (1, 2, 8, 8), 0)
    longest = put(trie, (1, 2, 3, 9), 1)
    put(trie, (1, 7, 7, 7), 2)
    match = trie.match("", (1, 2, 3, 4, 5))
    assert (match.partial, match.length) == (longest[0], 3)


def test_match_prefers_a_full_page_over_a_short_one(trie: Trie) -> None:
    put(trie, (1, 2, 3), 0)
    full = put(trie, (1, 2, 3, 4, 5), 1)
    match = trie.match("", (1, 2, 3, 4, 5))
    assert (match.nodes, match.partial, match.length) == ((full[0],), full[1], 5)


def test_match_of_tokens_that_end_inside_a_page(trie: Trie) -> None:
    nodes = put(trie, (1, 2, 3, 4, 5), 0)
    assert trie.match("", (1, 2)).partial is nodes[0]
    whole = trie.match("", (1, 2, 3, 4))
    assert (whole.nodes, whole.partial, whole.length) == ((nodes[0],), None, 4)
    assert whole.leaf is nodes[0]
    assert trie.match("", ()) == Match()


def test_tenants_see_only_their_own_pages(trie: Trie) -> None:
    put(trie, (1, 2, 3, 4), 0, "a")
    put(trie, (1, 2), 1, "b")
    assert trie.match("a", (1, 2, 3, 4)).length == 4
    assert trie.match("b", (1, 2, 3, 4)).length == 2
    assert trie.match("", (1, 2, 3, 4)).length == 0


def test_insert_dedupes_equal_pages_only(trie: Trie) -> None:
    node, taken = trie.insert("", None, (1, 2, 3, 4), 0)
    assert taken
    assert trie.insert("", None, (1, 2, 3, 4), 7) == (node, False)
    shorter, taken = trie.insert("", None, (1, 2, 3), 8)
    assert taken
    assert shorter is not node
    assert trie.num_nodes == 2
    assert {n.page for n in trie.walk()} == {0, 8}


def test_a_short_page_has_no_children(trie: Trie) -> None:
    short, _ = trie.insert("", None, (1, 2), 0)
    with pytest.raises(InvariantError, match="2 of 4"):
        trie.insert("", short, (3,), 1)


def test_locking_keeps_the_whole_path(trie: Trie) -> None:
    a, b, c = put(trie, tuple(range(12)), 0)
    trie.lock(c)
    assert (a.locks, b.locks, c.locks, trie.num_locked) == (1, 1, 1, 3)
    trie.lock(c)
    trie.lock(b)
    assert (a.locks, b.locks, c.locks, trie.num_locked) == (1, 2, 2, 3)
    trie.unlock(c)
    trie.unlock(c)
    assert (a.locks, b.locks, c.locks, trie.num_locked) == (1, 1, 0, 2)
    assert trie.unlock(b) == []
    assert trie.num_locked == 0
    with pytest.raises(InvariantError, match="more often"):
        trie.unlock(b)


def test_locking_nothing_is_allowed(trie: Trie) -> None:
    trie.lock(None)
    assert trie.unlock(None) == []


def test_a_short_page_covered_by_a_longer_one_is_freed_when_unlocked(trie: Trie) -> None:
    short, _ = trie.insert("", None, (1, 2), 0)
    trie.lock(short)
    trie.insert("", None, (1, 2, 3), 1)
    assert trie.unlock(short) == [0]
    assert trie.num_nodes == 1
    assert trie.match("", (1, 2)).length == 2


def test_a_short_page_that_nothing_covers_stays(trie: Trie) -> None:
    short, _ = trie.insert("", None, (1, 2), 0)
    trie.insert("", None, (1, 3, 3), 1)
    trie.lock(short)
    assert trie.unlock(short) == []
    assert trie.num_nodes == 2


def test_eviction_goes_by_last_use_and_only_through_leaves(trie: Trie) -> None:
    old = put(trie, (1, 1, 1, 1, 2, 2, 2, 2), 0)
    new = put(trie, (5, 5, 5, 5), 2)
    for leaf in (old[-1], new[-1]):
        trie.lock(leaf)
        trie.unlock(leaf)
    trie.lock(old[-1])
    trie.unlock(old[-1])  # used again: now the younger one
    assert trie.evict(1) == [2]
    assert trie.evict(1) == [1]  # the leaf before its parent
    assert trie.evict(5) == [0]
    assert trie.num_nodes == 0
    assert trie.match("", (1, 1)).length == 0


def test_locked_pages_and_their_ancestors_are_not_evicted(trie: Trie) -> None:
    a, b, c = put(trie, tuple(range(12)), 0)
    trie.lock(b)
    assert trie.evict(3) == [2]
    assert (a.parent is not None, b.parent is not None, c.parent) == (True, True, None)
    trie.unlock(b)
    assert trie.evict(1) == [1]


def test_the_root_is_not_a_page(trie: Trie) -> None:
    (node,) = put(trie, (1,), 0)
    root = node.parent
    assert root is not None
    with pytest.raises(InvariantError, match="root"):
        trie._remove(root)


def test_an_emptied_tenant_leaves_nothing_behind(trie: Trie) -> None:
    put(trie, (1, 2), 0, "gone")
    put(trie, (1, 2), 1, "stays")
    trie.lock(trie.match("stays", (1, 2)).leaf)
    assert trie.evict(2) == [0]
    assert list(trie._roots) == ["stays"]


def test_using_a_page_often_does_not_grow_the_index(trie: Trie) -> None:
    """Nothing is evicted in a big pool, so old entries must not pile up."""
    (leaf,) = put(trie, (1, 2, 3), 0)
    for _ in range(5000):
        trie.lock(leaf)
        trie.unlock(leaf)
    assert len(trie._evictable) < 200
    assert trie.evict(1) == [0]


def test_a_match_that_begins_at_a_known_node_is_the_same(trie: Trie) -> None:
    tokens = tuple(range(1, 12))
    nodes = put(trie, tokens, 0)
    other = put(trie, (*tokens[:4], 5, 6, 0, 0), 8)[-1]  # found by (…, 5, 6) as well
    for size in range(len(tokens) + 1):
        for known in (None, *nodes[: -(-size // P)], other if size > P else None):
            for wanted in (tokens[:size], (*tokens[:size], 90, 91)):
                assert trie.match("", wanted, known) == trie.match("", wanted)
