"""Attention over random trees of pages against dense softmax."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.embedded.attention import Planner, Row, attend
from engines.embedded.attention import _softmax_partial as softmax_partial

CPU = torch.device("cpu")


def random_rows(draw: random.Random, size: int, num_pages: int) -> list[Row]:
    """A random tree of full pages, and rows that hang on its nodes with pages of their own."""
    free = list(range(num_pages))
    if draw.random() < 0.5:
        draw.shuffle(free)
    paths: list[tuple[int, ...]] = [()]
    for _ in range(draw.randint(0, 6)):
        path = draw.choice(paths)
        paths.append(path + tuple(free.pop(0) for _ in range(draw.randint(1, 3))))
    rows = []
    is_decode = draw.random() < 0.5
    for _ in range(draw.randint(1, 20)):
        shared = draw.choice(paths)
        count = 1 if is_decode else draw.randint(1, 2 * size)
        before = draw.randrange(2 * size)
        own = [free.pop(0) for _ in range(-(-(before + count) // size) + draw.randint(0, 1))]
        seen = None
        if not is_decode and draw.random() < 0.5:
            seen = random_tree(draw, count)
        rows.append(Row(shared, own, len(shared) * size + before, count, seen))
    return rows


def random_tree(draw: random.Random, count: int) -> npt.NDArray[np.bool_]:
    """Who sees whom in a random tree, parents first."""
    seen = np.eye(count, dtype=np.bool_)
    for node in range(1, count):
        seen[node] |= seen[draw.randrange(node)]
    return seen


def dense(q: torch.Tensor, pages: torch.Tensor, rows: list[Row], scale: float) -> torch.Tensor:
    """One query at a time, float64."""
    size, ratio = pages.shape[1], q.shape[1] // pages.shape[2]
    outs = []
    for row in rows:
        slots = pages[[*row.shared, *row.own]].flatten(0, 1).double()  # (T, Hk, 2 D)
        slots = torch.stack(slots.chunk(2, dim=-1)).transpose(1, 2)  # (2, Hk, T, D)
        slots = slots.repeat_interleave(ratio, dim=1)
        for i in range(row.count):
            end = row.start + i + 1
            assert end <= size * (len(row.shared) + len(row.own))
            which = np.ones(end, dtype=np.bool_)
            if row.seen is not None:
                which[row.start :] = row.seen[i, : i + 1]
            k, v = slots[0, :, :end][:, which], slots[1, :, :end][:, which]
            scores = torch.einsum("hd,htd->ht", q[len(outs)].double(), k) * scale
            outs.append(torch.einsum("ht,htd->hd", scores.softmax(-1), v))
    return torch.stack(outs)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**9),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
)
def test_tree_attention_is_dense_attention(seed: int, size: int, shape: tuple[int, int]) -> None:
    heads, kv_heads = shape
    draw = random.Random(seed)
    num_pages = 160 * (4 if size == 1 else 1)
    rows = random_rows(draw, size, num_pages)
    torch.manual_seed(seed)
    pages = torch.randn(num_pages, size, kv_heads, 16) * draw.choice([0.5, 3.0])
    q = torch.randn(sum(row.count for row in rows), heads, 8)
    plan = Planner(num_pages, size, CPU, torch.float32).plan(rows)
    got = attend(q, pages, plan, 8**-0.5)
    assert torch.isfinite(got).all()
    assert torch.allclose(got.double(), dense(q, pages, rows, 8**-0.5), atol=2e-5, rtol=1e-4)


class Elsewhere(torch.Tensor):
    """Lies on the CPU and says that it does not, so that the portable kernel is taken."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_both_kernels_give_the_softmax_and_its_log_sum(
    kind: type[torch.Tensor], masked: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8).as_subclass(kind) for n in (5, 12, 12))
    mask = None
    if masked:
        mask = torch.zeros(3, 1, 1, 12)
        mask[0, ..., 4:] = -torch.inf
    out, lse = softmax_partial(q, k, v, mask, 0.4)
    scores = q.as_subclass(torch.Tensor) @ k.as_subclass(torch.Tensor).transpose(-1, -2) * 0.4
    scores = scores if mask is None else scores + mask
    expected = scores.softmax(-1) @ v.as_subclass(torch.Tensor)
    assert torch.allclose(lse.as_subclass(torch.Tensor), scores.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out.as_subclass(torch.Tensor), expected, atol=1e-5)
