"""How every strategy that votes treats answers that state nothing."""

from typing import Any

import pytest

from search.run import Run
from tests.search_harness import request
from tests.toy_engine import ToyEngine, ToyJudge, one_of

SILENT, STATED = "well\nwell", "so\nit is 4"
VOTING: list[tuple[str, dict[str, Any]]] = [
    ("rebase", {}),
    ("ets", {}),
    ("dvts", {}),
    ("mcts", {"choose": "vote", "width": 6}),
    ("particle_filter", {"choose": "vote"}),
    ("particle_filter", {"choose": "vote", "mode": "reference"}),
    ("self_consistency", {}),
    ("self_consistency", {"vote": "weighted"}),
    ("annealed", {}),
]


@pytest.mark.parametrize(("name", "params"), VOTING, ids=str)
async def test_who_states_nothing_never_outvotes_who_does(
    name: str, params: dict[str, Any]
) -> None:
    """Most answers say nothing, and the judge likes them better."""
    outvoted = 0
    for seed in range(8):
        engine = ToyEngine(one_of({SILENT: 0.6, STATED: 0.4}))
        judge = ToyJudge(lambda text: 0.6 if text.startswith("w") else 0.5)
        asked = request(name, {"width": 8, **params}, seed=seed)
        result = await Run(asked, engine=engine, judge=judge).result()
        texts = [one.content for one in result.candidates]
        if set(texts) == {SILENT, STATED}:
            assert texts == sorted(texts)  # "so" before "well"
            outvoted += 0.6 * texts.count(SILENT) > 0.5 * texts.count(STATED)
    assert outvoted
