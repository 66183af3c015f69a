"""`mcts` against exhaustive enumeration and against a PUCT that counts everything anew."""

import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from search.run import Run
from search.tree import TreeEvent
from tests.search_harness import request, result_of
from tests.toy_engine import END, ToyEngine, ToyJudge

DEPTH, LETTERS = 3, "abc"
ANSWERS = ["".join(f"{one}\n" for one in word) for word in itertools.product(LETTERS, repeat=DEPTH)]


def words(text: str) -> dict[str, float]:
    if len(text) % 2:
        return {"\n": 1.0}
    return dict.fromkeys(LETTERS, 1 / 3) if len(text) < 2 * DEPTH else {END: 1.0}


def value_of(seed: int) -> Any:
    return lambda text: zlib.crc32(f"{seed} {text}".encode()) % 1009 / 1009


@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("batch", [1, 4])
async def test_with_enough_budget_the_best_leaf_is_found(backup: str, batch: int) -> None:
    """Values say nothing of what is below: only a whole tree has the best leaf for sure.

    16 draws miss one of three letters with probability 3 (2/3)^16 = 0.0046; there are 13 inner
    nodes, but only the 3 on the way to the best leaf, and only its own letter matter: a case of
    3 seeds would fail with probability 9 (2/3)^16 = 0.014, if its seeds were not fixed.
    """
    engine = ToyEngine(words)
    params = {"width": 200, "children": 16, "backup": backup, "batch": batch}
    for seed in range(3):
        judge = ToyJudge(value_of(seed))
        result = await result_of(engine, "mcts", params, judge=judge, seed=seed)
        assert result.answers[0].content == max(ANSWERS, key=value_of(seed))


async def test_it_comes_back_from_a_deceptive_step() -> None:
    """The first step that looks best leads nowhere: a beam of one cannot return, PUCT does."""

    def deceptive(text: str) -> float:
        if text.startswith("a"):
            return 0.9 if len(text) == 2 else 0.1
        return 0.5 + 0.1 * text.count("c")

    engine = ToyEngine(words)
    for seed in range(5):
        judge = ToyJudge(deceptive)
        greedy = await result_of(engine, "beam", {"width": 12, "keep": 1}, judge=judge, seed=seed)
        assert greedy.score == pytest.approx(0.1)
        found = await result_of(
            engine, "mcts", {"width": 24, "children": 16}, judge=judge, seed=seed
        )
        assert found.score == pytest.approx(0.8)
        assert found.answers[0].content == "c\nc\nc\n"


class Recount:
    """What the events so far say, and nothing else."""

    def __init__(self) -> None:
        self.nodes: dict[int, dict[str, Any]] = {}

    def apply(self, event: TreeEvent) -> None:
        data = event.data
        if event.kind == "grown" and data["finish"] and self._equal(data):
            self._equal(data)[0]["copies"] += 1  # the same answer again
        elif event.kind == "grown":
            self.nodes[data["branch"]] = {**data, "copies": 1, "score": None}
        elif event.kind == "scored":
            self.nodes.get(data["branch"], {})["score"] = data["value"]
        elif event.kind == "pruned":
            self._equal(self.nodes.pop(data["branch"]))[0]["copies"] += 1

    def _equal(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            one
            for one in self.nodes.values()
            if all(one[key] == data[key] for key in ("parent", "text", "finish"))
        ]

    def below(self, number: int) -> list[dict[str, Any]]:
        """The judged nodes of a subtree."""
        own = [self.nodes[number]] if number else []
        kids = [one for one in self.nodes.values() if one["parent"] == number]
        return own + [node for kid in kids for node in self.below(kid["branch"])]

    def has_open(self, number: int) -> bool:
        kids = [one for one in self.nodes.values() if one["parent"] == number]
        if kids:
            return any(self.has_open(kid["branch"]) for kid in kids)
        return self.nodes[number]["finish"] is None

    def choice(self, exploration: float, backup: str, drawn: int) -> int:
        at = 0
        while True:
            kids = [one for one in self.nodes.values() if one["parent"] == at]
            if not kids:
                return at
            num_above = len(self.below(at))
            scores = {}
            for kid in kids:
                if self.has_open(kid["branch"]):
                    values = [one["score"] for one in self.below(kid["branch"])]
                    worth = max(values) if backup == "max" else sum(values) / len(values)
                    prior = kid["copies"] / drawn
                    bonus = prior * math.sqrt(num_above) / (1 + len(values))
                    scores[kid["branch"]] = worth + exploration * bonus
            at = max(scores, key=lambda one: (round(scores[one], 9), -one))


@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("exploration", [0.0, 0.5, 3.0])
async def test_every_choice_is_that_of_a_recount(backup: str, exploration: float) -> None:
    params = {"children": 4, "batch": 1, "backup": backup, "exploration": exploration}
    for seed in range(3):
        run = Run(
            request("mcts", {"width": 14, **params}, seed=seed),
            engine=ToyEngine(words),
            judge=ToyJudge(value_of(seed)),
        )
        await run.result()
        recount, num_choices = Recount(), 0
        for event in run.tree.events():
            if event.kind == "resampled":
                assert event.data["branch"] == recount.choice(exploration, backup, 4)
                num_choices += 1
            recount.apply(event)
        assert num_choices >= 10
