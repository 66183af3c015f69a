"""Stored trees: what comes back, what is left out, what two copies come to, who may see them."""

import asyncio
import json
import math
import random
import zlib
from typing import Any

import pytest

from engines.base import Sampling
from engines.errors import EngineClosed
from search.diffusion_tree import (
    Node,
    Rules,
    by_uct,
    depart,
    is_full,
    land,
    revalue,
    revisit,
    select,
)
from search.kept_trees import MAX_NODES, MAX_TOKENS, TTL_S, Kept, merged, packed, unpacked
from search.rollouts import Landed
from search.run import Result, Run, RunRequest
from stores.base import MAX_VALUE_BYTES
from stores.errors import StoreUnavailable
from stores.memory import MemoryStore
from tests.search_harness import request
from tests.toy_denoiser import ToyDiffusionEngine, sticky
from tests.toy_engine import ToyJudge

RULES = Rules(1, 0.5, math.inf, merges=True)
MASK = 99
START = (MASK, MASK, MASK)


def tree(seed: int, rollouts: int, root: Node | None = None) -> tuple[Node, list[Landed]]:
    """Three levels of letters; a reward for each text, and each letter an evaluation."""
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
            at, before = len(states), states[-1] if states else START
            states.append((*before[:at], rng.randrange(20), *before[at + 1 :]))
        depart(path)
        reward = round(sum(states[-1]) / 57, 5)
        land(path, states[begun:], reward, RULES, (1,) * (3 - begun))
        landed.append(Landed(tuple(states), begun, reward, (1, 1, 1)))
    return root, landed


def shape(root: Node) -> list[tuple[Any, ...]]:
    return [
        (one.state, one.level, one.is_end, one.visits, one.samples, one.num_drawn, one.value)
        for one in root.nodes
    ]


def there_and_back(root: Node, max_nodes: int = MAX_NODES) -> Kept:
    kept = unpacked(packed(root, max_nodes))
    assert kept is not None
    revalue(kept.root, RULES)
    return kept


def best_of(root: Node) -> Node:
    return max((one for one in root.nodes if one.is_end), key=lambda one: one.value)


def test_there_and_back() -> None:
    root, landed = tree(1, 60)
    kept = there_and_back(root)
    assert shape(kept.root) == shape(root)
    assert kept.nfe == sum(3 - one.begun for one in landed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"noise",
        zlib.compress(b"[]"),
        zlib.compress(b'{"format": 1, "text": [1], "visits": 1, "nfe": 0, "nodes": []}'),
        zlib.compress(json.dumps({"format": 2, "text": [1], "visits": 1, "drawn": 0}).encode()),
        zlib.compress(
            json.dumps(
                {
                    "format": 2,
                    "text": [1],
                    "visits": 1,
                    "drawn": 0,
                    "nodes": [[5, [1], 1, 1, 0, 1, None]],
                }
            ).encode()
        ),
        zlib.compress(b"[" * 1_000_000),
        *(
            zlib.compress(
                b'{"format": 2, "text": [1], "visits": 1, "drawn": 0,'
                b'"nodes": [[-1, [0, 5], 1, 1, 0, 1, %s]]}' % reward
            )
            for reward in (
                b'"0.5"',
                b"[]",
                b"{}",
                b"true",
                b"false",
                b'""',
                b"NaN",
                b"1" + b"0" * 400,
            )
        ),
    ],
)
def test_what_cannot_be_read_is_as_good_as_nothing(data: bytes) -> None:
    assert unpacked(data) is None
    assert merged(data, [], RULES) is None


@pytest.mark.parametrize("max_nodes", [1, 3, 10, 40, 79])
@pytest.mark.parametrize("seed", range(6))
def test_beyond_the_bound_the_best_text_stays(seed: int, max_nodes: int) -> None:
    root, _ = tree(seed, 160)
    whole = list(root.nodes)
    kept = there_and_back(root, max_nodes)
    left = list(kept.root.nodes)
    assert len(left) - 1 <= max(3, max_nodes) < len(whole) - 1
    assert best_of(kept.root).state == best_of(root).state
    assert kept.root.value == root.value
    assert all(one.is_end or one.children for one in left)
    places = [one.state for one in whole]
    found = [places.index(one.state) for one in left]
    assert found == sorted(found)  # in the order of creation, as before


def test_the_least_visited_go_first() -> None:
    """Of one branch with ten visits and nine with one, the visited one stays and is cut inside."""
    root, rules = Node(START, 0), Rules(math.inf, 0.5, math.inf)
    for number in range(10):
        states = [(number, MASK, MASK), (number, number, MASK), (number, number, number)]
        depart([root])
        land([root], states, number / 10, rules)
    begun, visited = root.children[3], root.children[3].children[0].children[0]
    for _ in range(9):
        revisit([root, begun, begun.children[0], visited], rules)
    depart([root, begun])
    land([root, begun], [(3, 1, MASK), (3, 1, 1)], 0.0, rules)
    kept = there_and_back(root, 6)
    ends = [one.state for one in kept.root.nodes if one.is_end]
    assert ends == [(3, 3, 3), (9, 9, 9)]


@pytest.mark.parametrize("max_nodes", [3, 20, 60])
def test_what_was_full_is_full_when_it_comes_back(max_nodes: int) -> None:
    root, _ = tree(7, 120)
    before = {one.state: one for one in root.nodes}
    twice = there_and_back(there_and_back(root, max_nodes).root, max_nodes)
    assert sum(one.samples for one in twice.root.children) < root.num_drawn
    for one in twice.root.nodes:
        assert (one.visits, one.num_drawn) == (
            before[one.state].visits,
            before[one.state].num_drawn,
        )
        assert is_full(one, RULES) is is_full(before[one.state], RULES)


@pytest.mark.parametrize("max_nodes", [3, 20, 60, MAX_NODES])
def test_evaluations_are_those_of_the_nodes_that_are_kept(max_nodes: int) -> None:
    root, landed = tree(8, 100)
    spent = {one.state: one.nfe for one in root.nodes}
    assert sum(spent.values()) == sum(3 - one.begun for one in landed)
    kept = there_and_back(root, max_nodes)
    assert kept.nfe == sum(spent[one.state] for one in kept.root.nodes)


def test_long_texts_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens of a large vocabulary are the worst case, which the store still takes."""
    rng, length = random.Random(9), 1 << 11
    monkeypatch.setattr("search.kept_trees.MAX_TOKENS", 32 * length)
    root, rules = Node((200_000,) * length, 0), Rules(math.inf, 0.5, math.inf)
    for _ in range(40):
        depart([root])
        land([root], [tuple(rng.choices(range(200_000), k=length))], rng.random(), rules)
    data = packed(root)
    kept = unpacked(data)
    assert kept is not None
    assert len(kept.root.children) == 32
    assert len(data) / (32 * length) < MAX_VALUE_BYTES / MAX_TOKENS


def test_two_copies_come_together() -> None:
    """One tree, grown on by two: merged in either order nothing of either is missing."""
    stored = packed(tree(3, 20)[0])
    grown, additions = [], []
    for seed in (4, 5):
        copy = unpacked(stored)
        assert copy is not None
        revalue(copy.root, RULES)
        root, landed = tree(seed, 15, copy.root)
        grown.append(packed(root))
        additions.append(landed)
    one = unpacked(merged(grown[0], additions[1], RULES) or b"")
    other = unpacked(merged(grown[1], additions[0], RULES) or b"")
    assert one is not None
    assert other is not None
    made = [*tree(3, 20)[1], *additions[0], *additions[1]]
    assert one.nfe == other.nfe == sum(3 - landed.begun for landed in made)
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


@pytest.mark.parametrize("strategy", ["dts", "dts_star"])
async def test_full_trees_go_on_with_new_draws(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten requests with one seed, most of them of a tree that is full."""
    monkeypatch.setattr("search.tree_shelf.packed", lambda root: packed(root, 20))
    bench, scores, sizes = Bench(), [], []
    for _ in range(10):
        result = await bench.ask({"reuse": True, "choose": "best"}, seed=5, strategy=strategy)
        scores.append(result.score or 0.0)
        sizes.append(result.tree.reused_nodes)
    assert scores == sorted(scores)
    assert len(set(sizes)) < len(sizes)
    assert max(sizes) <= 20
    draws = [(job.seed, job.step) for job in bench.engine.denoiser.jobs]
    assert len(set(draws)) == len(draws)


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


class Halt(asyncio.Event):
    """Says when somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = asyncio.Event()

    async def wait(self) -> Any:
        self.is_reached.set()
        return await super().wait()


class Stopping(Bench):
    """Comes to a halt in front of the second round."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__(store)
        self.halt = Halt()
        value = self.judge.value

        def valued(text: str) -> float:
            self.engine.denoiser.gate = self.halt
            return value(text)

        self.judge.value = valued


class Breaking(Halt):
    """The model breaks instead of going on."""

    async def wait(self) -> Any:
        raise EngineClosed("broke")


async def test_a_cancelled_run_leaves_what_landed() -> None:
    bench = Stopping()
    run = bench.run()
    task = asyncio.create_task(run.result())
    await bench.halt.is_reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.halt.set()
    again = await bench.ask(drawn=12)
    assert again.tree.reused_nodes > 0
    assert 0 < again.tree.reused_nfe < run.budget.spent.nfe


async def test_a_run_that_fails_leaves_what_landed() -> None:
    bench = Stopping()
    bench.halt = Breaking()
    with pytest.raises(EngineClosed, match="broke"):
        await bench.ask()
    bench.halt = Halt()
    bench.halt.set()
    bench.engine.denoiser.gate = None
    assert (await bench.ask(drawn=12)).tree.reused_nodes > 0


async def test_a_store_that_is_away_hides_no_failure() -> None:
    bench = Stopping(Away())
    bench.halt = Breaking()
    run = bench.run()
    with pytest.raises(EngineClosed, match="broke"):
        await run.result()
    assert run.store_errors == ["trees", "trees"]


class Slow(MemoryStore):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = asyncio.Event(), asyncio.Event()

    async def put_blob(self, key: str, data: bytes, **more: Any) -> Any:
        self.asked.set()
        await self.told.wait()
        return await super().put_blob(key, data, **more)


async def test_storing_that_is_begun_is_ended() -> None:
    """Whoever cancels in the middle of it does not wait for it, and it is stored all the same."""
    store = Slow()
    bench = Bench(store)
    task = asyncio.create_task(bench.ask())
    await store.asked.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert task.cancelled()
    store.told.set()
    assert (await bench.ask(drawn=12)).tree.reused_nodes > 0


async def test_a_store_that_never_writes_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tree_shelf.SAVE_S", 0.01)
    run = Bench(Slow()).run()
    assert (await run.result()).answers[0].content
    assert run.store_errors == ["trees"]


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
