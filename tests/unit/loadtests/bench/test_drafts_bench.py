"""`bough bench drafts`: the cells, the intervals, the exact test; and the real thing, small."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from loadtests.bench.drafts import STEMS, run
from loadtests.bench.drafts_chi2 import LENGTH, SAID, Exact, by_the_published_rule, p_of
from loadtests.bench.drafts_speed import CELLS, median_of, worst_of
from loadtests.bench.figures import Bench, Options


def exact() -> Exact:
    rng = random.Random(4)
    found: Exact = {}
    for length in range(LENGTH):
        for said in product(SAID, repeat=length):
            weights = [rng.uniform(0.2, 1.0) for _ in SAID]
            found[said] = {t: w / sum(weights) for t, w in zip(SAID, weights, strict=True)}
    return found


def test_the_chi_square_test_tells_the_published_rule_from_plain_draws() -> None:
    """False alarm: one seed in a thousand, and the seed is fixed."""
    target, rng = exact(), random.Random(1)
    plain: Counter[tuple[int, ...]] = Counter()
    for _ in range(20_000):
        said: tuple[int, ...] = ()
        while len(said) < LENGTH:
            row = target[said]
            said += (rng.choices(list(row), list(row.values()))[0],)
        plain[said] += 1
    assert p_of(plain, target) > 0.001
    assert p_of(by_the_published_rule(target, 20_000, 1), target) < 1e-6


def test_there_is_a_cell_for_every_figure() -> None:
    names = {cell.name for cell in CELLS}
    assert len(names) == len(CELLS) == 18
    assert {"task.greedy.b1", "editing.t1.b16", "prose.t1.b4"} <= names


def test_a_median_lies_in_its_interval() -> None:
    found = median_of([2.0, 2.2, 2.1, 2.4, 1.9, 2.3, 2.1], seed=0)
    assert found.value == 2.1
    assert 1.9 <= found.low <= 2.1 <= found.high <= 2.4
    assert found.n == 7


def test_the_worst_is_over_both_models_once_all_cells_are_there(tmp_path: Path) -> None:
    bench = Bench("drafts", Options(out=tmp_path))
    for stem in STEMS.values():
        assert worst_of(bench, STEMS) is None
        for cell in CELLS:
            is_worst = (stem, cell.name) == ("drafts.sapling.speedup", "prose.t1.b16")
            bench.put(f"{stem}.{cell.name}", 0.9 if is_worst else 1.5, unit="ratio", n=7)
    found = worst_of(bench, STEMS)
    assert found is not None
    assert (found[0], found[1].name) == ("sapling", "prose.t1.b16")


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    only = "drafts.accepted.adaptive.*,drafts.greedy*,drafts.chi2*,drafts.sapling.*.b1"
    assert run.main(["--out", str(tmp_path), "--n", "2", "--only", only]) == 0
    figures = json.loads((tmp_path / "drafts.json").read_text())["figures"]
    assert figures["drafts.greedy_mismatches"]["value"] == 0
    assert figures["drafts.accepted.adaptive.editing"]["value"] > 0
    assert figures["drafts.sapling.speedup.editing.greedy.b1"]["n"] == 2
