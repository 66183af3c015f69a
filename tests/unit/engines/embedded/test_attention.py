"""Splitting rows into segments, packing them, and reading runs of pages in place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from engines.embedded.attention import Plan, Planner, Row, Segment, attend, split
from engines.embedded.pages import KvPool

P = 4
CPU = torch.device("cpu")


def planner(num_pages: int = 64) -> Planner:
    return Planner(num_pages, P, CPU, torch.float32)


def row(shared: tuple[int, ...], own: list[int], start: int | None = None, count: int = 1) -> Row:
    return Row(shared, own, len(shared) * P if start is None else start, count)


def test_rows_without_common_pages_have_no_segments() -> None:
    assert split([row((1, 2), [3]), row((4,), [5]), row((), [6])], P) == ([], [0, 0, 0])


def test_a_chain_shared_by_all_is_one_segment() -> None:
    rows = [row((1, 2, 3), [10]), row((1, 2, 3), [11]), row((1, 2, 3), [12])]
    segments, taken = split(rows, P)
    assert segments == [Segment((1, 2, 3), (0, 1, 2), 0)]
    assert taken == [3, 3, 3]


def test_every_page_of_two_rows_or_more_is_in_exactly_one_segment() -> None:
    rows = [
        row((1, 2, 3, 4), [20]),
        row((1, 2, 3, 5), [21]),
        row((1, 2, 6), [22]),
        row((1, 2, 6), [23]),
        row((1,), [24]),
        row((7, 8), [25]),
    ]
    segments, taken = split(rows, P)
    in_segments = Counter(page for segment in segments for page in segment.pages)
    holders = Counter(page for r in rows for page in r.shared)
    assert in_segments == {page: 1 for page, count in holders.items() if count > 1}
    assert taken == [3, 3, 3, 3, 1, 0]
    for segment in segments:
        depth = segment.first_token // P
        for number in segment.rows:
            assert rows[number].shared[depth : depth + len(segment.pages)] == segment.pages


def cells(plan: Plan) -> list[tuple[list[int], list[int], np.ndarray]]:
    """(queries, pages, visible (queries, slots)) of every segment, unpacked."""
    found = []
    for group in plan.groups:
        pages = group.pages.view(group.num_segments, -1).tolist()
        slots = group.length
        of_cell = group.queries
        flat = np.arange(of_cell.stop)[of_cell] if isinstance(of_cell, slice) else of_cell.numpy()
        queries = flat.reshape(group.num_segments, -1).tolist()
        for i in range(group.num_segments):
            if group.mask is None:
                visible = np.ones((len(queries[i]), slots), dtype=bool)
            else:
                mask = (group.mask[i, 0, :, :slots] == 0).numpy()
                visible = np.broadcast_to(mask, (len(queries[i]), slots))
            found.append((queries[i], pages[i], visible))
    return found


def test_every_query_sees_each_slot_of_its_path_once() -> None:
    rows = [
        row((1, 2, 3), [10, 11], start=14),
        row((1, 2, 3), [12], start=13),
        row((1, 2), [13, 14, 15], start=9, count=7),
        row((), [16], start=0, count=3),
    ]
    seen: Counter[tuple[int, int, int]] = Counter()
    for queries, pages, visible in cells(planner().plan(rows)):
        done = set()
        for at, query in enumerate(queries):
            if query in done:
                continue  # a padded cell
            done.add(query)
            for slot in np.flatnonzero(visible[at]):
                seen[query, pages[slot // P], slot % P] += 1
    expected: Counter[tuple[int, int, int]] = Counter()
    query = 0
    for r in rows:
        path = [*r.shared, *r.own]
        for i in range(r.count):
            for token in range(r.start + i + 1):
                expected[query, path[token // P], token % P] += 1
            query += 1
    assert seen == expected


def test_runs_of_pages_are_read_in_place() -> None:
    rows = [row((), [4 * i, 4 * i + 1, 4 * i + 2], start=10) for i in range(6)]
    (group,) = planner().plan(rows).groups
    assert group.run == (0, 4)
    assert group.queries == slice(0, 6)


@pytest.mark.parametrize(
    "owns",
    [
        [[0, 1], [4, 5], [9, 10]],  # unequal steps
        [[0, 2], [4, 6]],  # holes
        [[8, 9], [4, 5]],  # backwards
    ],
)
def test_other_pages_are_gathered(owns: list[list[int]]) -> None:
    (group,) = planner().plan([row((), own, start=6) for own in owns]).groups
    assert group.run is None


def test_a_run_that_would_be_read_past_the_pools_end_is_gathered() -> None:
    rows = [row((), [0, 1, 2], start=9), row((), [6], start=1)]
    assert planner(8).plan(rows).groups[0].run is None
    assert planner(9).plan(rows).groups[0].run == (0, 6)


def test_long_series_of_runs_stand_alone_among_scattered_pages() -> None:
    scattered = [row((), [40 - i, 50 - i], start=6) for i in range(8)]
    series = [row((), [2 * i, 2 * i + 1], start=6) for i in range(10)]
    rows = [r for pair in zip(scattered, series, strict=False) for r in pair] + series[8:]
    groups = planner().plan(rows).groups
    assert sorted(g.num_segments for g in groups) == [8, 10]
    assert {g.run is not None: g.num_segments for g in groups} == {True: 10, False: 8}


def test_rows_of_many_lengths_need_few_groups() -> None:
    rows = [row((), list(range(100 * i, 100 * i + i + 1)), start=4 * i + 1) for i in range(1, 33)]
    plan = Planner(4000, P, CPU, torch.float32).plan(rows)
    assert len(plan.groups) <= 4
    assert plan.partials is not None
    assert len(plan.partials) == 32


@pytest.mark.parametrize("shared", [(), (1, 2)])
def test_advancing_a_plan_is_planning_the_next_token(shared: tuple[int, ...]) -> None:
    def rows(step: int) -> list[Row]:
        first = len(shared) * P
        return [
            row(shared, [10, 11], start=first + step),
            row(shared, [20], start=first + step),
            row((), [30, 31, 32], start=8 + step),
        ]

    torch.manual_seed(0)
    pool = KvPool(1, 64, P, 2, 8, dtype=torch.float32, device=CPU)
    pool.pages[0].normal_()
    advanced = planner().plan(rows(0))
    for step in range(4):
        q = torch.randn(3, 4, 8)
        fresh = attend(q, pool.pages[0], planner().plan(rows(step)), 0.3)
        assert torch.allclose(attend(q, pool.pages[0], advanced, 0.3), fresh, atol=1e-6)
        if step < 3:
            advanced.advance()


def test_what_is_masked_does_not_matter() -> None:
    """Slots behind the query's own, and pages only read as padding, change nothing."""
    torch.manual_seed(1)
    pool = KvPool(1, 16, P, 1, 8, dtype=torch.float32, device=CPU)
    pool.pages[0].normal_()
    rows = [row((), [0, 1, 2], start=9), row((), [4], start=1), row((), [8, 9], start=5)]
    q = torch.randn(3, 2, 8)
    before = attend(q, pool.pages[0], planner(16).plan(rows), 0.4)
    pool.pages[0][2, 2:] = 1e6
    pool.pages[0][4, 2:] = 1e6
    pool.pages[0][5:8] = -1e6
    pool.pages[0][9, 2:] = 1e6
    pool.pages[0][10:] = 1e6
    assert torch.equal(attend(q, pool.pages[0], planner(16).plan(rows), 0.4), before)


def test_pages_are_written_and_copied_whole() -> None:
    pool = KvPool(2, 4, P, 2, 3, dtype=torch.float32, device=CPU)
    k, v = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    pool.write(1, torch.tensor([5, 2]), k, v)
    assert torch.equal(pool.pages[1][1, 1, :, :3], k[0])
    assert torch.equal(pool.pages[1][0, 2, :, 3:], v[1])
    assert not pool.pages[0].any()
    pool.copy([])
    pool.copy([(1, 3), (0, 2)])
    assert torch.equal(pool.pages[1][3], pool.pages[1][1])
    assert torch.equal(pool.pages[1][2], pool.pages[1][0])


def test_two_partials_of_every_query_are_merged_as_one_softmax() -> None:
    shared = (0, 1, 2)
    in_order = [row(shared, [8 + 3 * i, 9 + 3 * i], start=3 * P + 2) for i in range(20)]
    shuffled = [row(shared, [8 + 3 * (i * 7 % 20)], start=3 * P + 1) for i in range(20)]
    pool = KvPool(1, 80, P, 2, 8, dtype=torch.float32, device=CPU)
    pool.pages[0].normal_()
    q = torch.randn(20, 4, 8)
    for rows in (in_order, shuffled):
        plan = planner(80).plan(rows)
        assert plan.second is not None
        merged = attend(q, pool.pages[0], plan, 0.3)
        plan.second = None  # the general way
        assert torch.allclose(merged, attend(q, pool.pages[0], plan, 0.3), atol=1e-6)


def test_private_queries_of_equal_length_need_no_mask_on_their_way() -> None:
    """What advances reads exactly the slots that count, and a mask only where lengths differ."""
    even = planner().plan([row((), [4 * i, 4 * i + 1], start=4) for i in range(6)])
    odd = planner().plan([row((), [4 * i, 4 * i + 1], start=4 + i % 2) for i in range(6)])
    for plan in (even, odd):
        plan.advance()
    assert (even.groups[0].length, even.groups[0].mask) == (6, None)
    (group,) = odd.groups
    assert group.length == 7
    assert group.mask is not None
    assert (group.mask[:, 0, 0, :7] == 0).sum(-1).tolist() == [6, 7] * 3
