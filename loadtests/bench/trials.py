"""Many word problems under one strategy, a row each, resumable.

A knob is a real number: a strategy of integer width 12.3 uses 13 on three problems in ten and 12
on the others, chosen by the problem's number, so that strategies can be brought to equal cost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from loadtests.bench.figures import Bench, Journal, code_hash
from loadtests.bench.saplings import IN_FLIGHT, Saplings, seed_of
from models.evaluate import held_out
from models.tasks import sums
from models.tasks.base import Split

_GOLDEN: Final = 0.6180339887498949


@dataclass(frozen=True)
class Contender:
    """A strategy with its knob.

    Attributes:
        strategy: Its name.
        width: The knob; may be fractional. 0 for a strategy without one.
        params: Its other parameters.
    """

    strategy: str
    width: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)

    def params_at(self, index: int) -> dict[str, Any]:
        """Parameters for problem number `index`."""
        if not self.width:
            return dict(self.params)
        # Multiples of the golden ratio fill [0, 1) evenly, however many problems there are.
        extra = (index * _GOLDEN) % 1.0 < self.width % 1.0
        return {**self.params, "width": math.floor(self.width) + extra}

    def __str__(self) -> str:
        """The knobs in words, for tables and journal keys."""
        width = {"width": round(self.width, 3)} if self.width else {}
        knobs = {**width, **self.params}
        return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "none"


@dataclass(frozen=True)
class Rows:
    """What a contender did on a list of problems, in their order.

    Attributes:
        right: Whether each answer was right, float64 0 or 1.
        tokens: Generated tokens of each.
        seconds: Wall time of each: from one completion to the next, so the sum is the whole's.
    """

    right: np.ndarray[Any, np.dtype[np.float64]]
    tokens: np.ndarray[Any, np.dtype[np.float64]]
    seconds: np.ndarray[Any, np.dtype[np.float64]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Rows:
        """Columns from journal rows."""
        return cls(*(np.array([row[key] for row in rows], float) for key in _COLUMNS))

    def first(self, count: int) -> Rows:
        """The first so many problems."""
        return Rows(self.right[:count], self.tokens[:count], self.seconds[:count])

    def __len__(self) -> int:
        """Number of problems."""
        return len(self.right)


_COLUMNS: Final = ("right", "tokens", "seconds")


class Lab:
    """Runs contenders on problems of one split and remembers every row."""

    def __init__(self, bench: Bench, saplings: Saplings, split: Split) -> None:
        self._bench = bench
        self._saplings = saplings
        self._split: Split = split
        self._journal = Journal(bench.out / f"quality.{split}.jsonl")
        self._problems: list[sums.Problem] = []

    async def run(self, contender: Contender, indices: Iterable[int]) -> Rows | None:
        """All problems, some at a time; None when time ran out before the last one began."""
        wanted = list(indices)
        self._draw(max(wanted) + 1)
        todo = [index for index in wanted if self._key(contender, index) not in self._journal.rows]
        before = time.perf_counter()

        async def worker() -> None:
            nonlocal before
            while todo and not self._bench.out_of_time():
                index = todo.pop(0)
                row = await self._one(contender, index)
                now = time.perf_counter()
                self._journal.add(self._key(contender, index), {**row, "seconds": now - before})
                before = now

        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT, len(todo))):
                group.create_task(worker())
        if todo:
            return None
        return Rows.of([self._journal.rows[self._key(contender, index)] for index in wanted])

    async def _one(self, contender: Contender, index: int) -> dict[str, Any]:
        problem = self._problems[index]
        seed = seed_of("quality", self._bench.seed, index)
        params = contender.params_at(index)
        result = await self._saplings.ask(problem, contender.strategy, params, seed)
        content = result.answers[0].content if result.answers else ""
        return {
            "right": sums.is_right(problem, content),
            "tokens": result.spent.generated_tokens,
            "content": content,
        }

    def _key(self, contender: Contender, index: int) -> str:
        knobs = f"{contender.strategy}({contender})"
        return f"{knobs}:{self._bench.seed}:{index}:{code_hash()}"

    def _draw(self, count: int) -> None:
        if count > len(self._problems):
            self._problems = held_out(count, self._bench.seed, self._split)
