"""What replicas' tries come to when they are exchanged, and which are refused."""

from __future__ import annotations

import pytest

from engines.drafters.base import EMPTY
from engines.drafters.errors import DrafterError
from engines.drafters.lessons import Lesson
from engines.drafters.opening import pack
from engines.drafters.suffix import Suffix
from engines.drafters.trie import SuffixTrie, read_nodes

TEXT = (5, 6, 7, 8)


def taught(drafter: Suffix, *tokens: int) -> None:
    drafter.learn(Lesson(EMPTY, tokens, (), None, "r", "t"))


def of(*nodes: list[object]) -> bytes:
    return pack("suffix/1", {"nodes": list(nodes)})


def test_exchanges_do_not_count_again_what_both_have() -> None:
    """Two busy replicas: each round both learn a text, and both take the other's snapshot."""
    first, second = Suffix(), Suffix()
    for rounds in range(1, 61):
        for one in (first, second):
            taught(one, *TEXT)
        second.merge(first.snapshot(tenant="t"), tenant="t")
        first.merge(second.snapshot(tenant="t"), tenant="t")
        for one in (first, second):
            [_, node] = one._tenants["t"].young.match(TEXT[:1])
            assert rounds <= node.count <= 2 * rounds
    taught(first, 9, 10, 11)
    second.merge(first.snapshot(tenant="t"), tenant="t")
    assert second.propose((9,), 4, run="new", tenant="t").tokens == (10,)


def test_totals_are_the_sum_of_the_counts() -> None:
    mine, theirs = SuffixTrie(3, 100), SuffixTrie(3, 100)
    mine.learn((), (1, 2, 1, 3))
    theirs.learn((), (1, 2, 2, 2))
    mine.load(theirs.dump(100))
    root = mine.match(())[0]
    assert {token: node.count for token, node in root.children.items()} == {1: 2, 2: 3, 3: 1}
    for string in ((), (1,), (2,), (1, 2), (2, 2)):
        node = mine.match(string)[len(string)]
        assert node.total == sum(child.count for child in node.children.values())


def test_counts_are_no_token_ids() -> None:
    many = 2**40
    assert read_nodes([[-1, 3, many]]) == [(-1, 3, many)]


@pytest.mark.parametrize("count", [0, -1, 1.0, True, None, 10**400])
def test_a_count_that_is_none_is_refused(count: object) -> None:
    drafter = Suffix()
    with pytest.raises(DrafterError, match="of another form"):
        drafter.merge(of([-1, 5, 1], [0, 6, count]), tenant="t")
    assert drafter.propose((5,), 4, run="r", tenant="t") == EMPTY
