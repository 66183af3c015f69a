"""Stored trees: what comes back, what is left out, what two copies come to, who may see them."""

import asyncio
import json
import math
import random
import zlib
from typing import Any

import pytest

from engines.base import Sampling
from search.diffusion_tree import Node, Rules, by_uct, depart, land, revalue, revisit, select
from search.kept_trees import TTL_S, merged, packed, unpacked
from search.rollouts import Landed
from search.run import Result, Run, RunRequest
from stores.errors import StoreUnavailable
from stores.memory import MemoryStore
from tests.search_harness import request
from tests.toy_denoiser import ToyDiffusionEngine, sticky
from tests.toy_engine import ToyJudge

RULES = Rules(1, 0.5, math.inf, merges=True)
START = (9, 9, 9)


def tree(seed: int, rollouts: int, root: Node | None = None) -> tuple[Node, list[Landed]]:
    """Three levels of letters; a reward for each text."""
    rng, landed = random.Random(seed), list[Landed]()
    root = root or Node(START, 0)
    for _ in range(rollouts):
        path = select(root, RULES, by_uct(lambda: 0.5), fits=lambda node: True)
        if path[-1].is_end:
            revisit(path, RULES)
            continue
        states = [one.state for one in path[1:]]
        begun = len(states)
        while len(states) < 3:
            states.append((*(states[-1] if states else ()), rng.randrange(20)))
        depart(path)
        reward = round(sum(states[-1]) / 57, 5)
        land(path, states[begun:], reward, RULES)
        landed.append(Landed(tuple(states), begun, reward))
    return root, landed


def shape(root: Node) -> list[tuple[Any, ...]]:
    return [
        (one.state, one.level, one.is_end, one.visits, one.samples, one.num_drawn, one.value)
        for one in root.nodes
    ]


def test_there_and_back() -> None:
    root, _ = tree(1, 60)
    kept = unpacked(packed(root, 321))
    assert kept is not None
    revalue(kept.root, RULES)
    assert shape(kept.root) == shape(root)
    assert kept.nfe == 321


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"noise",
        zlib.compress(b"[]"),
        zlib.compress(b'{"format": 0}'),
        zlib.compress(json.dumps({"format": 1, "text": [1], "visits": 1, "nfe": 0}).encode()),
        zlib.compress(
            json.dumps(
                {"format": 1, "text": [1], "visits": 1, "nfe": 0, "nodes": [[5, [1], 1, 1, None]]}
            ).encode()
        ),
    ],
)
def test_what_cannot_be_read_is_as_good_as_nothing(data: bytes) -> None:
    assert unpacked(data) is None
    assert merged(data, [], 0, RULES) is None


def test_beyond_the_bound_the_least_visited_beginnings_go() -> None:
    root, _ = tree(2, 80)
    sizes = {top: sum(1 for _ in top.nodes) for top in root.children}
    kept = unpacked(packed(root, 1000, max_nodes=40))
    assert kept is not None
    assert 0 < sum(1 for _ in kept.root.nodes) - 1 <= 40 < sum(sizes.values())
    best = max((one for one in root.nodes if one.is_end), key=lambda one: one.value)
    assert best.state in {one.state for one in kept.root.nodes}
    assert 0 < kept.nfe < 1000
    left = {top.state for top in kept.root.children}
    assert [top.state for top in root.children if top.state in left] == [
        top.state for top in kept.root.children
    ]


def test_two_copies_come_together() -> None:
    """One tree, grown on by two: merged in either order nothing of either is missing."""
    stored = packed(tree(3, 20)[0], 100)
    grown, additions = [], []
    for seed in (4, 5):
        copy = unpacked(stored)
        assert copy is not None
        revalue(copy.root, RULES)
        root, landed = tree(seed, 15, copy.root)
        grown.append(packed(root, 100 + 10))
        additions.append(landed)
    one = unpacked(merged(grown[0], additions[1], 10, RULES) or b"")
    other = unpacked(merged(grown[1], additions[0], 10, RULES) or b"")
    assert one is not None
    assert other is not None
    assert one.nfe == other.nfe == 120
    first = sum(end.samples for end in tree(3, 20)[0].nodes if end.is_end)
    for kept in (one, other):
        ends = [node for node in kept.root.nodes if node.is_end]
        assert sum(end.samples for end in ends) == first + len(additions[0]) + len(additions[1])
        assert kept.root.visits >= 1 + first + len(additions[0]) + len(additions[1])
    states = [{node.state for node in kept.root.nodes} for kept in (one, other)]
    assert states[0] == states[1]


class Bench:
    """One engine, judge and store; asks the same again."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.engine = ToyDiffusionEngine(sticky("abcd", 0.5), 8, kernel="any")
        self.judge = ToyJudge(lambda text: len(set(text)) / 4 + 0.01 * text.count("c"))
        self.store = store or MemoryStore()

    async def ask(
        self, params: dict[str, Any] | None = None, *, seed: int | None = None, **more: Any
    ) -> Result:
        run = self.run(params, seed=seed, **more)
        return await run.result()

    def run(
        self, params: dict[str, Any] | None = None, *, seed: int | None = None, **more: Any
    ) -> Run:
        given = {"samples": 6, "width": 2, **(params or {})}
        name = more.pop("strategy", "dts_star")
        drawn = more.pop("drawn", 11)
        made = request(name, given, seed=drawn if seed is None else seed)
        fields = {**vars(made), "sampling": Sampling(seed=seed), **more}
        return Run(RunRequest(**fields), engine=self.engine, judge=self.judge, store=self.store)


async def test_a_second_request_goes_on() -> None:
    bench = Bench()
    first = await bench.ask()
    assert (first.tree.reused_nodes, first.tree.reused_nfe) == (0, 0)
    second = await bench.ask(drawn=12)
    assert second.tree.reused_nodes == first.tree.nodes - 1 > 0
    assert second.tree.reused_nfe == first.spent.nfe
    assert second.spent.nfe <= 6 * 8
    assert (second.score or 0) >= (first.score or 0)
    texts = {one.content for one in first.candidates}
    assert texts < {one.content for one in second.candidates}
    third = await bench.ask({"lambda": 3.0, "capacity": 2.0}, strategy="dts", drawn=13)
    assert third.tree.reused_nfe == first.spent.nfe + second.spent.nfe


async def test_with_a_seed_it_starts_fresh_unless_asked() -> None:
    bench = Bench()
    await bench.ask()
    fresh = await bench.ask(seed=5)
    again = await bench.ask(seed=5)
    assert fresh.tree.reused_nodes == again.tree.reused_nodes == 0
    assert fresh.answers == again.answers
    going = await bench.ask({"reuse": True}, seed=5)
    assert going.tree.reused_nodes > 0
    more = await bench.ask({"reuse": True}, seed=5)
    assert more.tree.reused_nfe == going.tree.reused_nfe + going.spent.nfe
    assert (await bench.ask({"reuse": False})).tree.reused_nodes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"messages": ({"role": "user", "content": "something else"},)},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling(stop=("a",))},
        {"params": {"samples": 6, "branch_levels": [3]}},
        {"params": {"samples": 6, "steps": 4}},
        {"params": {"samples": 6, "aggregate": "mean"}},
    ],
)
async def test_anything_else_has_a_tree_of_its_own(change: dict[str, Any]) -> None:
    bench = Bench()
    await bench.ask()
    assert (await bench.ask(**change)).tree.reused_nodes == 0
    assert (await bench.ask()).tree.reused_nodes > 0


async def test_another_judge_or_model_has_a_tree_of_its_own() -> None:
    bench, other = Bench(), Bench()
    await bench.ask()
    other.store = bench.store
    other.judge.info = type(other.judge.info)("another", other.judge.info.kind)
    assert (await other.ask()).tree.reused_nodes == 0


async def test_requests_at_once_lose_nothing() -> None:
    bench = Bench()
    results = await asyncio.gather(*(bench.ask(drawn=seed) for seed in range(4)))
    last = await bench.ask(drawn=9)
    assert last.tree.reused_nfe == sum(one.spent.nfe for one in results)
    texts = {one.content for result in results for one in result.candidates}
    assert texts <= {one.content for one in last.candidates}


async def test_trees_expire() -> None:
    now = 0.0
    bench = Bench(MemoryStore(clock=lambda: now))
    await bench.ask()
    now = TTL_S - 1
    assert (await bench.ask(drawn=12)).tree.reused_nodes > 0
    now = 2 * TTL_S - 2  # each growth renews it
    assert (await bench.ask(drawn=13)).tree.reused_nodes > 0
    now = 3 * TTL_S
    assert (await bench.ask(drawn=14)).tree.reused_nodes == 0


class Away(MemoryStore):
    """A store that stopped answering."""

    async def get_blob(self, key: str, *, tenant: str) -> Any:
        raise StoreUnavailable("away")

    async def put_blob(self, key: str, data: bytes, **more: Any) -> Any:
        raise StoreUnavailable("away")


async def test_a_store_that_is_away_costs_the_reuse_only() -> None:
    run = Bench(Away()).run()
    result = await run.result()
    assert result.answers[0].content
    assert result.tree.reused_nodes == 0
    assert run.store_errors == ["trees", "trees"]


async def test_what_cannot_be_paid_any_more_is_still_answered() -> None:
    """A budget below one text is enough where the tree has texts already."""
    bench = Bench()
    first = await bench.ask()
    made = bench.run({"samples": 1, "width": 1}).request
    limited = Run(
        RunRequest(**{**vars(made), "limits": type(made.limits)(nfe=0)}),
        engine=bench.engine,
        judge=bench.judge,
        store=bench.store,
    )
    result = await limited.result()
    assert (result.spent.nfe, result.stop_reason) == (0, "budget")
    assert result.answers[0].content == first.answers[0].content
