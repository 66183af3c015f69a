"""Many problems under one strategy, a row each, resumable.

A knob is a real number: a strategy of integer width 12.3 uses 13 on three problems in ten and 12
on the others, chosen by the problem's number, so that strategies can be brought to equal cost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from loadtests.bench.figures import Bench, Journal, code_hash
from loadtests.bench.questions import Question, Source, of_task
from loadtests.bench.saplings import IN_FLIGHT, Saplings, seed_of
from models.tasks import sums
from models.tasks.base import Split
from search.run import Result
from search.tree import SearchTree

Probe: TypeAlias = Callable[[Question, Result, SearchTree], Mapping[str, Any]]
"""More columns of a row."""

_GOLDEN: Final = 0.6180339887498949


@dataclass(frozen=True)
class Contender:
    """A strategy with its knob.

    Attributes:
        strategy: Its name.
        width: The knob; may be fractional. 0 for a strategy without one.
        params: Its other parameters.
        sampling: What differs from a plain answer: fields of `engines.base.Sampling`.
    """

    strategy: str
    width: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

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
        knobs = {**width, **self.params, **self.sampling}
        return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "none"


class Rows:
    """What a contender did on a list of problems, in their order; a float64 column a quantity.

    Args:
        rows: From the journal; all have the same columns.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of several, one after the other."""
        return cls([row for part in parts for row in part._rows])

    def __getitem__(self, name: str) -> npt.NDArray[np.float64]:
        """A column."""
        return np.array([row[name] for row in self._rows], float)

    def raw(self, name: str) -> list[Any]:
        """A column as it was written, whatever it holds."""
        return [row[name] for row in self._rows]

    def __len__(self) -> int:
        """Number of problems."""
        return len(self._rows)

    @property
    def right(self) -> npt.NDArray[np.float64]:
        """Whether each answer was right, 0 or 1."""
        return self["right"]

    @property
    def tokens(self) -> npt.NDArray[np.float64]:
        """Generated tokens of each."""
        return self["tokens"]

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """Wall time of each: from one completion to the next, so the sum is the whole's."""
        return self["seconds"]

    def first(self, count: int) -> Rows:
        """The first so many problems."""
        return Rows(self._rows[:count])


class Lab:
    """Runs contenders on problems of one split and remembers every row.

    Args:
        bench: Whose seed, folder and time.
        saplings: The models.
        split: Of the problems.
        name: Of the journal; one name has one source, one judge and one `probe`.
        source: Of the questions; word problems by default.
        seed: Of the runs; the bench's by default.
        probe: More columns.
        in_flight: Problems at a time.
    """

    def __init__(
        self,
        bench: Bench,
        saplings: Saplings,
        split: Split,
        *,
        name: str = "quality",
        source: Source | None = None,
        seed: int | None = None,
        probe: Probe | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self._bench = bench
        self._saplings = saplings
        self._seed = bench.seed if seed is None else seed
        self._draw = source or of_task(sums.NAME, seed=self._seed, split=split)
        self._probe = probe
        self._in_flight = in_flight
        self._journal = Journal(bench.out / f"{name}.{split}.jsonl")
        self._questions: Sequence[Question] = []

    async def run(self, contender: Contender, indices: Iterable[int]) -> Rows | None:
        """All problems, some at a time; None when time ran out before the last one began."""
        wanted = list(indices)
        if max(wanted) >= len(self._questions):
            self._questions = self._draw(max(wanted) + 1)
        wanted = [index for index in wanted if index < len(self._questions)]
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
            for _ in range(min(self._in_flight, len(todo))):
                group.create_task(worker())
        if todo:
            return None
        return Rows([self._journal.rows[self._key(contender, index)] for index in wanted])

    async def _one(self, contender: Contender, index: int) -> dict[str, Any]:
        question = self._questions[index]
        seed = seed_of("quality", self._seed, index)
        params = contender.params_at(index)
        result, tree = await self._saplings.search(
            question.messages, contender.strategy, params, seed, sampling=contender.sampling
        )
        content = result.answers[0].content if result.answers else ""
        return {
            "right": question.is_right(content),
            "tokens": result.spent.generated_tokens,
            "peak_kv": result.tree.peak_kv_tokens,
            "content": content,
            **(self._probe(question, result, tree) if self._probe else {}),
        }

    def _key(self, contender: Contender, index: int) -> str:
        knobs = f"{contender.strategy}({contender})"
        return f"{knobs}:{self._seed}:{index}:{code_hash()}"
