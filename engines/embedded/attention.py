"""Attention over a tree of pages.

A batch is a set of query tokens, each at the end of a path of pages. Pages under several paths form
*shared* segments: their keys and values are read once for all queries below them. What is left of
each path is a *private* segment. Every segment gives a partial softmax; partials of one query are
merged by their log-sum-exp, so the result equals attention over the whole path and KV traffic is
the number of distinct tokens.

`plan` decides, in numpy and without tensors of the model; `attend` computes. A plan serves all
layers of one step.

Letters: N query tokens, S segments, R queries of a segment, T slots of a segment, Hq query heads,
Hk key/value heads, D head width, P slots of a page, K partials of a query.

Source: cascade / tree attention with log-sum-exp merging (FlashInfer, Hydragen); the batching of
    unequal segments into padded groups by size is ours.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

_SMALL_BATCH: Final = 96  # segments below which fewer groups beat less padding
_MIN_SERIES: Final = 8  # segments worth a group of their own to be read in place


@dataclass(frozen=True)
class Row:
    """One sequence in the batch.

    Attributes:
        shared: Pages that other rows may hold too, full ones, root first. Rows with the same tuple
            object compare fast.
        own: Pages of this row alone, after `shared`.
        start: Tokens of the sequence before the first query.
        count: Query tokens, at positions start … start + count - 1, in the flat order of the batch.
        seen: Which query sees which, (count, count), where that is less than all before it: a tree
            of drafted tokens, parents first. Their keys lie where a sequence of `count` would.
    """

    shared: tuple[int, ...]
    own: Sequence[int]
    start: int
    count: int
    seen: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Segment:
    """Pages, the rows that see all of them, and the position of their first slot."""

    pages: tuple[int, ...]
    rows: tuple[int, ...]
    first_token: int


class Workspace:
    """One buffer for gathered pages, used by one group after the other.

    A fresh allocation of this size comes straight from the system and is paid for in page faults:
    at 384 branches they took more than a third of the compute time.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def gather(self, pages: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """``pages.index_select(0, which)``, overwritten by the next call."""
        size = len(which) * pages[0].numel()
        if self._buffer.numel() < size or self._buffer.dtype != pages.dtype:
            self._buffer = torch.empty(size + size // 4, dtype=pages.dtype, device=pages.device)
        out = self._buffer[:size].view(len(which), *pages.shape[1:])
        return torch.index_select(pages, 0, which, out=out)


@dataclass
class Group:
    """Segments of similar size, padded to one rectangle.

    Attributes:
        queries: (S * R,) int64 flat query of every cell; a slice when they follow each other.
        pages: (S * T / P,) int64, padded by repeating a page; unread when there is a `run`.
        run: First page and step from segment to segment, when every segment's pages are consecutive
            and the segments lie at equal steps: they are then read in place. Else None.
        num_segments: S.
        length: Slots read of each segment, at most T; the others count for no query.
        mask: (S, 1, R or 1, T) additive mask; None when every slot read counts for every query.
        limits: (S, 1) int64 slots that count for each segment's only query, where there is a mask
            and the group can advance; else None.
        can_advance: Whether each segment has one query, at its end.
        workspace: Where scattered pages are gathered.
    """

    queries: torch.Tensor | slice
    pages: torch.Tensor
    run: tuple[int, int] | None
    num_segments: int
    length: int
    mask: torch.Tensor | None
    limits: torch.Tensor | None
    can_advance: bool
    workspace: Workspace

    def advance(self) -> None:
        """Move every query one slot on, where that is possible."""
        if not self.can_advance:
            return
        self.length += 1
        if self.mask is not None and self.limits is not None:
            self.mask.view(self.num_segments, -1).scatter_(1, self.limits, 0.0)
            self.limits += 1


@dataclass
class Plan:
    """All groups of a batch, and where each query's partials lie among their concatenated outputs.

    Attributes:
        groups: At least one.
        partials: (N, K) int64 into the concatenated cells, the last index standing for "none"; None
            when a query's only partial is the cell of its own number.
        second: When every query has two partials, of which the first is the cell of its own number
            in the first group: where the other is among the cells of the later groups, (N,) int64,
            or all of them in order.
    """

    groups: list[Group]
    partials: torch.Tensor | None
    second: torch.Tensor | slice | None = None

    def advance(self) -> None:
        """Move every private query one slot on; all must stay inside their pages."""
        for group in self.groups:
            group.advance()


@dataclass
class _Cell:
    """A segment to be packed: pages, flat queries, and the slots its first query sees."""

    pages: Sequence[int]
    queries: Sequence[int]
    limit: int
    is_private: bool
    seen: npt.NDArray[np.bool_] | None = None


def split(rows: Sequence[Row], page_tokens: int) -> tuple[list[Segment], list[int]]:
    """Shared segments of `rows`, and how many of its `shared` pages each row has in them.

    Every page that at least two rows hold is in exactly one segment.
    """
    by_path: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_path[row.shared].append(number)
    paths = list(by_path.items())
    taken = [0] * len(rows)
    segments: list[Segment] = []
    pending = [(0, paths)]
    while pending:
        depth, members = pending.pop()
        branches: dict[int, list[tuple[tuple[int, ...], list[int]]]] = defaultdict(list)
        for path, numbers in members:
            if len(path) > depth:
                branches[path[depth]].append((path, numbers))
        for group in branches.values():
            if len(group) == 1 and len(group[0][1]) == 1:
                continue  # one row only: private
            end = _agreement([path for path, _ in group])
            numbers = [number for _, members_ in group for number in members_]
            segments.append(Segment(group[0][0][depth:end], tuple(numbers), depth * page_tokens))
            for number in numbers:
                taken[number] = end
            pending.append((end, group))
    return segments, taken


def _agreement(paths: Sequence[tuple[int, ...]]) -> int:
    """Length of the common beginning of all `paths`: that of the smallest and the largest."""
    first, last = min(paths), max(paths)
    if first is last:
        return len(first)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


class Planner:
    """Builds plans for one pool.

    Args:
        num_pages: Pages of the pool.
        page_tokens: P.
        device: Where the plan's tensors go.
        dtype: Of the masks; the model's.
    """

    def __init__(
        self, num_pages: int, page_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._num_pages = num_pages
        self._size = page_tokens
        self._device = device
        self._dtype = dtype
        self._workspace = Workspace()

    def plan(self, rows: Sequence[Row]) -> Plan:
        """The groups for one batch."""
        size = self._size
        offsets = [0, *itertools.accumulate(row.count for row in rows)]
        segments, taken = split(rows, size)
        cells = []
        for segment in segments:
            queries = [q for r in segment.rows for q in range(offsets[r], offsets[r + 1])]
            cells.append(_Cell(segment.pages, queries, len(segment.pages) * size, False))
        for number, row in enumerate(rows):
            skipped = taken[number]
            limit = row.start + 1 - skipped * size
            used = -(-(limit + row.count - 1) // size)
            pages = [*row.shared[skipped:], *row.own][:used]
            own = range(offsets[number], offsets[number + 1])
            cells.append(_Cell(pages, own, limit, True, row.seen))
        return self._pack(cells, offsets[-1])

    def _pack(self, cells: list[_Cell], total: int) -> Plan:
        """Bucket cells by size, pad each bucket, note where every query's partials lie."""
        buckets: dict[tuple[int, int, bool], list[_Cell]] = defaultdict(list)
        is_small = len(cells) <= _SMALL_BATCH
        for cell in cells:
            # A little padding is cheaper than another group of operations, in a small batch.
            size = len(cell.pages)
            pages_class = max(3, (size - 1).bit_length()) if is_small else _size_class(size)
            key = (len(cell.queries) - 1).bit_length(), pages_class, cell.is_private
            buckets[key].append(cell)
        groups: list[Group] = []
        owners: list[npt.NDArray[np.int64]] = []
        parts = [part for bucket in buckets.values() for part in _parts(bucket)]
        parts.sort(key=lambda members: (members[0].is_private, members[0].queries[0]))
        for members in parts:
            group, queries = self._group(members)
            groups.append(group)
            owners.append(queries)
        if len(groups) == 1 and groups[0].queries == slice(0, total):
            return Plan(groups, None)
        cells_of = np.concatenate(owners)
        table = _places(cells_of, total)
        is_pair = table.shape[1] == 2 and table.max() < len(cells_of)
        second = None
        if is_pair and groups[0].queries == slice(0, total):
            second = index_of(table[:, 1] - total, self._device)
        return Plan(groups, torch.from_numpy(table).to(self._device), second)

    def _group(self, members: list[_Cell]) -> tuple[Group, npt.NDArray[np.int64]]:
        """One padded rectangle, and the query that owns each of its cells, -1 for padding."""
        size, count = self._size, len(members)
        depth = max(len(cell.pages) for cell in members)
        width = max(len(cell.queries) for cell in members)
        pages = np.array(
            [[*cell.pages, *[cell.pages[-1]] * (depth - len(cell.pages))] for cell in members]
        )
        queries = np.array(
            [[*cell.queries, *[cell.queries[-1]] * (width - len(cell.queries))] for cell in members]
        ).reshape(-1)
        counts = np.array([[len(cell.queries)] for cell in members])
        is_padding = (np.arange(width) >= counts).reshape(-1)
        limits = np.array([[cell.limit] for cell in members])
        is_private = members[0].is_private
        if is_private and width > 1:
            limits = limits + np.minimum(np.arange(width)[None, :], counts - 1)
        mask, steps = None, None
        can_advance = is_private and width == 1
        length = int(limits.max()) if can_advance else depth * size
        if limits.min() < length:
            hidden = np.arange(depth * size)[None, None, :] >= limits[:, :, None]
            _hide_other_branches(members, hidden)
            bias = np.where(hidden, np.float32(-np.inf), np.float32(0.0))
            mask = torch.from_numpy(bias).to(self._device, self._dtype).unsqueeze(1)
            steps = torch.from_numpy(limits).to(self._device) if can_advance else None
        group = Group(
            index_of(queries, self._device),
            torch.from_numpy(pages.reshape(-1)).to(self._device),
            self._run(members),
            count,
            length,
            mask,
            steps,
            can_advance,
            self._workspace,
        )
        return group, np.where(is_padding, -1, queries)

    def _run(self, members: list[_Cell]) -> tuple[int, int] | None:
        """First page and step, if all members are runs at equal steps inside the pool."""
        firsts = [cell.pages[0] for cell in members]
        step = firsts[1] - firsts[0] if len(firsts) > 1 else 0
        if step < 0 or any(b - a != step for a, b in itertools.pairwise(firsts)):
            return None
        # Short members are read past their end; those slots are masked, but must exist.
        depth = max(len(cell.pages) for cell in members)
        if firsts[-1] + depth > self._num_pages or not all(map(_is_consecutive, members)):
            return None
        return firsts[0], step


def _hide_other_branches(members: list[_Cell], hidden: npt.NDArray[np.bool_]) -> None:
    """Mark in `hidden` (S, R, T) what queries of drafted trees do not see of their own tree."""
    for cell, of_cell in zip(members, hidden, strict=True):
        if cell.seen is not None:
            count, at = len(cell.queries), cell.limit - 1
            of_cell[:count, at : at + count] |= ~cell.seen
            of_cell[count:] = of_cell[count - 1]  # padding repeats the last query


def index_of(numbers: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor | slice:
    """`numbers` as an index; where they follow each other a slice, which takes no copy."""
    first, count = int(numbers[0]), len(numbers)
    if numbers[-1] - first == count - 1 and (numbers == np.arange(first, first + count)).all():
        return slice(first, first + count)
    return torch.from_numpy(numbers).to(device)


def _places(owners: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Which cells each query owns, (total, most of any), filled up with the number of cells."""
    cells = np.flatnonzero(owners >= 0)
    cells = cells[np.argsort(owners[cells], kind="stable")]
    counts = np.bincount(owners[cells], minlength=total)
    rank = np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((total, int(counts.max())), len(owners))
    table[owners[cells], rank] = cells
    return table


def _size_class(size: int) -> int:
    """`size` rounded up to 1, 2, 3, 4, 6, 8, 12, 16, …: padding of at most a third."""
    power: int = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def _is_consecutive(cell: _Cell) -> bool:
    pages = cell.pages
    first, size = pages[0], len(pages)
    return pages[-1] - first == size - 1 and list(pages) == list(range(first, first + size))


def _parts(bucket: list[_Cell]) -> list[list[_Cell]]:
    """A bucket cut so that long series of runs at equal steps stand alone and the rest together."""
    if len(bucket) < 2 * _MIN_SERIES or not bucket[0].is_private:
        return [bucket]
    runs = sorted(filter(_is_consecutive, bucket), key=lambda cell: cell.pages[0])
    series: list[list[_Cell]] = []
    for cell in runs:
        last = series[-1] if series else []
        step = cell.pages[0] - last[-1].pages[0] if last else 0
        if last and (len(last) == 1 or step == last[-1].pages[0] - last[-2].pages[0]):
            last.append(cell)
        else:
            series.append([cell])
    long = [members for members in series if len(members) >= _MIN_SERIES]
    apart = {id(cell) for members in long for cell in members}
    rest = [cell for cell in bucket if id(cell) not in apart]
    return [*long, rest] if rest else long


def attend(q: torch.Tensor, pages: torch.Tensor, plan: Plan, scale: float) -> torch.Tensor:
    """Attention of every query over its whole path.

    Args:
        q: (N, Hq, D) rotated queries.
        pages: (num_pages, P, Hk, 2 D) one layer of the pool, the queries' own tokens written.
        plan: For this batch.
        scale: Multiplies the scores.

    Returns:
        (N, Hq, D).
    """
    outs, lses = [], []
    for group in plan.groups:
        out, lse = _partial(q, pages, group, scale)
        if plan.partials is None:
            return out
        outs.append(out)
        lses.append(lse)
    if plan.second is not None:
        other = torch.cat(outs[1:]) if len(outs) > 2 else outs[1]
        lse = torch.cat(lses[1:]) if len(lses) > 2 else lses[1]
        weight = (lse[plan.second] - lses[0]).sigmoid_()
        return torch.lerp(outs[0], other[plan.second], weight.unsqueeze(-1).to(other.dtype))
    heads, width = q.shape[1], q.shape[2]
    outs.append(q.new_zeros(1, heads, width))
    lses.append(lses[0].new_full((1, heads), -torch.inf))
    partials = plan.partials
    assert partials is not None
    flat = partials.reshape(-1)
    shape = (*partials.shape, heads)
    weights = torch.cat(lses).index_select(0, flat).view(shape).softmax(1)  # (N, K, Hq)
    values = torch.cat(outs).index_select(0, flat).view(*shape, width)
    return (weights.unsqueeze(-1).to(values.dtype) * values).sum(1)


def _partial(
    q: torch.Tensor, pages: torch.Tensor, group: Group, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One group's partial softmax: outputs (S * R, Hq, D) and log-sum-exp (S * R, Hq)."""
    kv_heads, width = pages.shape[2], pages.shape[3] // 2
    count = group.num_segments
    if group.run is not None:
        first, step = group.run
        page, slot, head, unit = pages.stride()
        shape = (count, kv_heads, group.length, 2 * width)
        strides = (step * page, head, slot, unit)
        kv = pages.as_strided(shape, strides, pages.storage_offset() + first * page)
    else:
        kv = group.workspace.gather(pages, group.pages)  # (S * T / P, P, Hk, 2 D)
        kv = kv.view(count, -1, kv_heads, 2 * width).transpose(1, 2)[:, :, : group.length]
    k, v = kv[..., :width], kv[..., width:]  # (S, Hk, T, D)
    cells = q[group.queries]
    heads = q.shape[1]
    ratio = heads // kv_heads
    cells = cells.view(count, -1, heads, width)
    rows = cells.shape[1]
    mask = None if group.mask is None else group.mask[..., : group.length]
    if ratio == 1:
        grouped = cells.transpose(1, 2)
    else:
        # Queries of one kv head are rows of the same product: (S, Hk, R * G, D).
        grouped = cells.view(count, rows, kv_heads, ratio, width).transpose(1, 2)
        grouped = grouped.reshape(count, kv_heads, rows * ratio, width)
        if mask is not None and mask.shape[2] > 1:
            mask = mask.repeat_interleave(ratio, dim=2)
    out, lse = _softmax_partial(grouped, k, v, mask, scale)
    if ratio == 1:
        return out.transpose(1, 2).reshape(-1, heads, width), lse.transpose(1, 2).reshape(-1, heads)
    out = out.view(count, kv_heads, rows, ratio, width).transpose(1, 2)
    lse = lse.view(count, kv_heads, rows, ratio).transpose(1, 2)
    return out.reshape(-1, heads, width), lse.reshape(-1, heads)


def _softmax_partial(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp; (S, H, R, D) in and out, lse (S, H, R) float32."""
    if q.device.type == "cpu":
        # torch exposes the log-sum-exp of its fused CPU kernel only through this operator.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, lse
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).to(v.dtype)
    return torch.matmul(weights, v), lse
