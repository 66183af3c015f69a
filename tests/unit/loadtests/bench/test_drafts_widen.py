"""The widened model says what the sapling says."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import Continuation, Engine, Sampling, TokenIds
from engines.embedded.engine import open_engine
from loadtests.bench.drafts_widen import Wide, write_widened
from loadtests.bench.drafts_workloads import WORKLOADS
from loadtests.bench.saplings import GENERATOR, OPTIONS
from models.registry import bundled

SMALL = Wide(units=640, layers=6)


async def answer(engine: Engine, prompt: TokenIds) -> Continuation:
    prefix = await engine.open(prompt)
    how = Sampling(temperature=0.0, max_tokens=40, deltas=False)
    [child] = [item async for item in engine.sample(prefix, how) if isinstance(item, Continuation)]
    child.prefix.release()
    prefix.release()
    return child


async def test_the_same_tokens_and_logps_from_more_weights(tmp_path: Path) -> None:
    source = bundled("generator")[GENERATOR]
    wide = write_widened(source, tmp_path / "wide", seed=3, shape=SMALL)
    plain = open_engine("plain", str(source), OPTIONS)
    widened = open_engine("wide", str(wide), OPTIONS)
    try:
        more = 4 * 3 * 128 * 192 + 2 * (4 * 192 * 192 + 3 * 640 * 192 + 2 * 192)
        assert widened.info.parameters == plain.info.parameters + more
        for workload in WORKLOADS:
            prompt = workload.prompt(plain, "validation", 2, 0)
            one, other = await answer(plain, prompt), await answer(widened, prompt)
            assert one.token_ids == other.token_ids
            assert one.logps == pytest.approx(other.logps, abs=1e-4)
    finally:
        await plain.aclose()
        await widened.aclose()


def test_a_model_is_not_made_narrower(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 layers of 512 units"):
        write_widened(bundled("generator")[GENERATOR], tmp_path, seed=0, shape=Wide(256, 8))


def test_the_default_has_fifty_million_parameters() -> None:
    shape = Wide()
    added = shape.layers * 3 * shape.units * 192
    assert added > 50e6
