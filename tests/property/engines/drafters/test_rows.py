"""Rows, tries and bounded maps against plain dicts: bounds, order of eviction, frozen bases."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.drafters.rows import Rows
from engines.drafters.trie import Generations, SuffixTrie, read_nodes

keys = st.integers(0, 7)
tokens = st.integers(0, 5)
writes = st.lists(st.tuples(keys, tokens, st.sampled_from([0.04, 0.5, 1.0])), max_size=60)


class Base:
    def __init__(self) -> None:
        self.held = {0: {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.0625}, 3: {2: 1.0}}

    def row(self, key: int) -> dict[int, float] | None:
        return self.held.get(key)


@settings(max_examples=150, deadline=None)
@given(writes, st.integers(1, 4), st.integers(1, 3))
def test_rows_are_bounded_and_the_least_recently_written_goes(
    done: list[tuple[int, int, float]], max_rows: int, row_cap: int
) -> None:
    base = Base()
    rows, order = Rows(max_rows, row_cap, base), []
    for key, token, amount in done:
        rows.add(key, token, amount)
        assert token in (rows.get(key) or {})
        order = [*(k for k in order if k != key), key][-max_rows:]
        assert [key for key, _ in rows.items()] == order
        assert all(len(row) <= row_cap for _, row in rows.items())
        rows.get(order[0])  # reading does not keep a row
    assert base.held == Base().held
    for key in range(8):
        if key not in order:
            assert rows.get(key) == base.row(key)


@settings(max_examples=100, deadline=None)
@given(st.lists(tokens, max_size=40), st.integers(1, 5), st.lists(st.integers(1, 4), max_size=20))
def test_a_trie_counts_every_string_once(text: list[int], depth: int, cuts: list[int]) -> None:
    trie, at = SuffixTrie(depth, 10_000), 0
    for size in (*cuts, len(text)):
        trie.learn(text[:at], text[at : at + size])
        at = min(len(text), at + size)
    counts: Counter[tuple[int, ...]] = Counter(
        tuple(text[i : i + n]) for n in range(1, depth + 1) for i in range(len(text) - n + 1)
    )
    assert trie.num_nodes == len(counts)
    for string, count in counts.items():
        node = trie.match(string)[len(string)]
        assert node.count == count
        assert node.total == sum(child.count for child in node.children.values())
    copy = SuffixTrie(depth, 10_000)
    copy.load(read_nodes(trie.dump(10_000)))
    assert sorted(copy.dump(10_000)) == sorted(trie.dump(10_000))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(tokens, max_size=12), max_size=12), st.integers(4, 40))
def test_generations_are_bounded(texts: list[list[int]], most: int) -> None:
    shared = Generations(3, most)
    for text in texts:
        shared.learn((), text)
        assert shared.num_nodes <= most
