"""Prompts stay with the worker that holds most of them, as long as that is not swamped."""

from engines.sglang_routing import BLOCK_TOKENS, PrefixMap, Routing

TREE = tuple(range(64))
OTHER = tuple(range(500, 564))


def two(routing: Routing | None = None, capacity: int = 8192) -> PrefixMap:
    return PrefixMap([capacity, capacity], routing or Routing())


def test_new_prompts_go_to_the_least_loaded() -> None:
    assert two().choose(TREE, "", {0: 3, 1: 1}) == (1, 0)
    assert two().choose(TREE, "", {0: 0, 1: 0}) == (0, 0)


def test_equally_loaded_workers_take_turns_with_new_trees() -> None:
    known = two()
    known.learn(0, TREE, "")
    assert known.choose(OTHER, "", {0: 0, 1: 0}) == (1, 0)


def test_a_branch_stays_with_its_tree() -> None:
    known = two()
    known.learn(1, TREE, "")
    assert known.choose((*TREE, 7, 8), "", {0: 0, 1: 5}) == (1, 64)
    assert known.choose(TREE[:40], "", {0: 0, 1: 5}) == (1, 2 * BLOCK_TOKENS)


def test_the_longest_part_wins() -> None:
    known = two()
    known.learn(0, TREE[:32], "")
    known.learn(1, TREE, "")
    assert known.choose(TREE, "", {0: 0, 1: 0}) == (1, 64)


def test_a_small_share_is_no_reason() -> None:
    known = two(Routing(min_match=0.5))
    known.learn(0, TREE[:16], "")
    assert known.choose(TREE, "", {0: 1, 1: 0})[0] == 1
    assert known.choose(TREE[:32], "", {0: 1, 1: 0})[0] == 0


def test_a_swamped_worker_is_passed_over() -> None:
    known = two(Routing(max_imbalance=4, max_load_ratio=1.5))
    known.learn(0, TREE, "")
    assert known.choose(TREE, "", {0: 4, 1: 0})[0] == 0
    assert known.choose(TREE, "", {0: 5, 1: 0})[0] == 1
    assert known.choose(TREE, "", {0: 14, 1: 9})[0] == 1
    assert known.choose(TREE, "", {0: 15, 1: 10})[0] == 0


def test_tenants_share_nothing() -> None:
    known = two()
    known.learn(1, TREE, "a")
    assert known.choose(TREE, "b", {0: 0, 1: 0}) == (0, 0)
    assert known.choose(TREE, "a", {0: 0, 1: 0}) == (1, 64)


def test_only_the_named_workers_are_chosen_from() -> None:
    known = two()
    known.learn(1, TREE, "")
    assert known.choose(TREE, "", {0: 9}) == (0, 0)


def test_the_oldest_is_forgotten_first() -> None:
    known = two(capacity=64 * BLOCK_TOKENS)
    known.learn(0, TREE, "")
    for start in range(1000, 1000 + 61 * BLOCK_TOKENS, BLOCK_TOKENS):
        known.learn(0, tuple(range(start, start + BLOCK_TOKENS)), "")
    assert known.choose(TREE, "", {0: 0}) == (0, 0)


def test_a_worker_that_was_started_again_holds_nothing() -> None:
    known = two()
    known.learn(0, TREE, "")
    known.forget(0, 8192)
    assert known.choose(TREE, "", {0: 0, 1: 0}) == (0, 0)
