"""How many branches a beam keeps, by both rules."""

import zlib

import pytest

from search.run import Run
from search.strategies.beam import BeamParams
from tests.search_harness import request
from tests.toy_engine import ToyEngine, ToyJudge


def endless(text: str) -> dict[str, float]:
    """Lines of one letter."""
    return {"\n": 1.0} if len(text) % 2 else dict.fromkeys("abcdefgh", 1 / 8)


def any_value(text: str) -> float:
    return zlib.crc32(text.encode()) % 9973 / 9973


@pytest.mark.parametrize(
    ("width", "keep", "kept"),
    [(16, None, 4), (10, None, 4), (1, None, 1), (64, None, 8), (64, 4, 4), (6, 9, 9)],
)
def test_the_rules(width: int, keep: int | None, kept: int) -> None:
    assert BeamParams(width=width, keep=keep).num_kept == kept


@pytest.mark.parametrize(("keep", "kept"), [(None, 4), (2, 2), (12, 12), (99, 12)])
async def test_the_best_are_kept_and_the_width_is_spread(keep: int | None, kept: int) -> None:
    params = {"width": 12, "keep": keep, "max_depth": 3}
    run = Run(request("beam", params), engine=ToyEngine(endless), judge=ToyJudge(any_value))
    await run.result()
    nodes = run.tree.snapshot()["nodes"]
    for depth in (1, 2):
        level = [one for one in nodes if one["depth"] == depth]
        assert len(level) == 12
        best = sorted(level, key=lambda one: (-one["score"], one["id"]))
        born = [sum(one["parent"] == node["id"] for one in nodes) for node in best]
        assert sum(born) == 12
        assert born == sorted(born, reverse=True)
        assert sum(map(bool, born)) == kept
        assert max(born) - min(born[:kept]) <= 1
        assert {one["state"] for one in best[kept:]} <= {"pruned"}
