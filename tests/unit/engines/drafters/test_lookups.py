"""The drafters that copy: suffix (worked example E6), ngram, token recycling; and adaptive."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from engines.drafters.adaptive import Adaptive
from engines.drafters.base import EMPTY, NodeTops
from engines.drafters.ngram import Ngram
from engines.drafters.rows import pair, single
from engines.drafters.suffix import Suffix
from engines.drafters.token_recycling import TEMPLATE, TokenRecycling

TEXT = (1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2)


@pytest.mark.parametrize(
    ("length", "tokens", "score"),
    [
        (1, [3], 0.5),
        (2, [3, 1], 1.0),
        (3, [4, 1, 2], 1.5),
        (4, [4, 1, 2, 3], 2.0),
        (5, [4, 1, 2, 3, 1], 2.5),
        (6, [], 0.0),
    ],
)
def test_e6_each_match_length(length: int, tokens: list[int], score: float) -> None:
    drafter = Suffix(depth=24)
    drafter.begin("r", TEXT, tenant="t")
    trie = drafter._runs["t", "r"]
    nodes = trie.match(TEXT)
    found, probs = drafter._follow(nodes[length], length)
    assert found == tokens
    assert sum(probs) == pytest.approx(score, abs=1e-5)


def test_e6_the_chosen_draft() -> None:
    drafter = Suffix(depth=24)
    drafter.begin("r", TEXT, tenant="t")
    tree = drafter.propose(TEXT, 32, run="r", tenant="t")
    assert tree.tokens == (4, 1, 2, 3, 1)
    assert [math.exp(logp) for logp in tree.logps] == pytest.approx([0.5] * 5)


def test_ngram_copies_after_the_earliest_of_the_longest() -> None:
    text = (7, 1, 2, 8, 9, 1, 2, 5, 6, 1, 2)
    drafter = Ngram(min_match=1, max_match=5)
    assert drafter.propose(text, 3, run="r", tenant="t").tokens == (8, 9, 1)
    assert drafter.propose((*text, 8), 2, run="r", tenant="t").tokens == (9, 1)
    assert Ngram(min_match=3).propose(text, 3, run="r", tenant="t") == EMPTY


def test_ngram_finds_whole_tokens_only() -> None:
    """256 then 0 holds the bytes of 1 at an odd place."""
    assert Ngram(min_match=1).propose((256, 0, 1), 2, run="r", tenant="t") == EMPTY


def test_the_published_template() -> None:
    assert Counter(map(len, TEMPLATE)) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    assert len(set(TEMPLATE)) == 80
    for place, path in enumerate(TEMPLATE):
        assert len(path) == 1 or path[:-1] in TEMPLATE[:place]


def test_token_recycling_overwrites_the_rows_of_all_nodes() -> None:
    drafter = TokenRecycling()
    first = NodeTops([(5, 6)], [(0.6, 0.4)])
    drafter.observe(EMPTY, (5,), (1,), first, run="r", tenant="t")
    tree = drafter.propose((1,), 8, run="r", tenant="t")
    assert tree.tokens == (5, 6)
    second = NodeTops([(6, 5), (7, 8), (1, 2)], [(0.9, 0.1)] * 3)
    drafter.observe(tree, (6,), (1,), second, run="r", tenant="t")
    tree = drafter.propose((1,), 80, run="r", tenant="t")
    assert {tree.path(node) for node in range(3)} == {(6,), (5,), (6, 1)}


def test_adaptive_learns_from_rejected_nodes() -> None:
    drafter = Adaptive()
    context = (1, 2)
    drafter.observe(EMPTY, (3,), context, NodeTops([(3, 4)], [(0.6, 0.3)]), run="r", tenant="t")
    tree = drafter.propose(context, 8, run="q", tenant="t")
    rejected = tree.tokens.index(4)
    ids = [(3, 4), *((9, 8) if node == rejected else (5, 6) for node in range(len(tree)))]
    tops = NodeTops(ids, [(0.7, 0.2)] * len(ids))
    drafter.observe(tree, (3,), context, tops, run="r", tenant="t")
    again = drafter.propose(context, 16, run="q", tenant="t")
    assert (4, 9) in {again.path(node) for node in range(len(again))}


def test_adaptive_copies_long_repeats_in_one_go() -> None:
    drafter = Adaptive()
    text = tuple(range(100, 130))
    drafter.begin("r", (*text, 1, 2, *text[:6]), tenant="t")
    tree = drafter.propose(text[:6], 12, run="r", tenant="t")
    assert text[6:16] in {tree.path(node) for node in range(len(tree))}


def test_adaptive_uses_the_base_and_leaves_it_as_it_is() -> None:
    class Base:
        held = {pair(1, 2): {7: 0.9}, single(7): {8: 1.0}}  # noqa: RUF012

        def row(self, key: int) -> dict[int, float] | None:
            return self.held.get(key)

    drafter = Adaptive(base=Base())
    assert drafter.propose((1, 2), 2, run="r", tenant="t").tokens == (7, 8)
    for _ in range(50):
        drafter.observe(EMPTY, (5,), (1, 2), run="r", tenant="a")
    assert drafter.propose((1, 2), 1, run="q", tenant="a").tokens == (5,)
    assert drafter.propose((1, 2), 2, run="r", tenant="t").tokens == (7, 8)
    assert Base.held == {pair(1, 2): {7: 0.9}, single(7): {8: 1.0}}


def test_adaptive_goes_on_where_only_the_last_two_tokens_were_seen_before() -> None:
    """The end of a text that was learnt matches itself up to its whole depth."""
    drafter = Adaptive()
    drafter.begin("run", (1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 31, 32, 33, 34, 35, 36, 37, 3), tenant="a")
    context = (30, 31, 32, 33, 34, 35, 36, 37, 3)
    drafter.observe(EMPTY, (4,), context, run="run", tenant="a")
    tree = drafter.propose((*context, 4), 4, run="run", tenant="a")
    assert tree.path(3) == (5, 6, 7, 8)
    assert tree.logps[0] > math.log(0.5)


def test_adaptive_learns_the_end_of_a_prompt_that_is_too_long() -> None:
    drafter = Adaptive(max_run_contexts=1200)
    prompt = tuple(range(1000))
    drafter.begin("r", prompt, tenant="t")
    assert drafter.propose(prompt[-8:-4], 4, run="r", tenant="t").tokens == prompt[-4:]
    assert drafter.propose(prompt[:4], 4, run="r", tenant="t") == EMPTY
    assert drafter.stats().entries <= 600
    drafter.observe(EMPTY, (5000,), prompt[-8:], run="r", tenant="t")
    assert drafter.propose(prompt[-8:], 1, run="r", tenant="t").tokens == (5000,)
