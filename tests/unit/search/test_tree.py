import asyncio
import json

from engines.base import Finish
from search.tree import (
    Chosen,
    Failed,
    Pruned,
    Resampled,
    Scored,
    SearchTree,
    Slot,
    Step,
    TreeEvent,
)


def test_ids_are_given_at_submission() -> None:
    tree = SearchTree()
    first, second = tree.submit(tree.root), tree.submit(tree.root)
    late = tree.add(second, Step("b", (2,)))
    early = tree.add(first, Step("a", (1,)))
    below = tree.add(late, Step("c", (3, 4)))
    assert [one.id for one in tree.branches] == [0, 1, 2, 3]
    assert (early.id, early.path, late.path, below.path) == (1, (0,), (1,), (1, 0))
    assert tree.branch(3) is below


def test_a_branch_reads_its_lineage() -> None:
    tree = SearchTree()
    a = tree.add(tree.root, Step("ab", (1, 2), (-0.1, -0.2), top_logps=(((1, -0.1),),) * 2))
    b = tree.add(a, Step("c", (3,), (-0.3,), top_logps=(((3, -0.3),),), finish=Finish.STOP))
    assert (b.text, b.token_ids, b.logps) == ("abc", (1, 2, 3), (-0.1, -0.2, -0.3))
    assert b.top_logps == (((1, -0.1),), ((1, -0.1),), ((3, -0.3),))
    assert (b.text_end, b.num_tokens, b.depth) == (3, 3, 2)
    assert [b.text_from(start) for start in range(5)] == ["abc", "bc", "c", "", ""]
    assert b.is_finished
    assert not a.is_finished
    assert b.descends_from([a.id])
    assert not a.descends_from([b.id])
    assert tree.root.top_logps is None
    assert tree.add(b, Step("d", (4,))).top_logps is None


def test_snapshot_and_replay() -> None:
    tree = SearchTree()
    children = [tree.add(tree.root, Step(text, (1,))) for text in "abc"]
    end = tree.add(children[0], Step("!", (2,), finish=Finish.STOP_TOKEN))
    tree.record(Scored(end.id, 0.5, (0.25, 0.5)))
    tree.record(Resampled(children[0].id, 2))
    tree.record(Pruned(children[1].id, "worse"))
    tree.record(Failed(children[2].id, "NaN"))
    tree.record(Chosen((end.id,)))
    tree.close("done")
    tree.close("cancelled")  # the first one counts
    nodes = {node["id"]: node for node in tree.snapshot()["nodes"]}
    assert [nodes[at]["state"] for at in range(5)] == ["kept", "kept", "pruned", "failed", "chosen"]
    assert (nodes[4]["score"], nodes[4]["step_scores"], nodes[4]["finish"]) == (
        0.5,
        [0.25, 0.5],
        "stop_token",
    )
    assert nodes[1]["resampled"] == 2
    assert nodes[2]["why"] == "worse"
    assert (tree.snapshot()["chosen"], tree.snapshot()["stop_reason"]) == ([4], "done")
    wire = [json.loads(json.dumps(event.to_json())) for event in tree.events()]
    assert SearchTree.replay(map(TreeEvent.from_json, wire)) == tree.snapshot()
    assert [event.number for event in tree.events(after=8)] == [9, 10]


async def test_followers_see_every_event_once_and_end_with_the_run() -> None:
    tree = SearchTree()

    async def follow(after: int) -> list[int]:
        return [event.number async for event in tree.follow(after)]

    early = asyncio.create_task(follow(-1))
    late = asyncio.create_task(follow(1))
    for text in "abc":
        await asyncio.sleep(0)
        tree.add(tree.root, Step(text))
    tree.close("done")
    assert await early == [0, 1, 2, 3, 4]
    assert await late == [2, 3, 4]
    assert await follow(-1) == [0, 1, 2, 3, 4]


def test_a_slot_knows_its_path() -> None:
    tree = SearchTree()
    child = tree.add(tree.root, Step("a"))
    assert Slot(9, child, 4).path == (0, 4)
