"""The bench of headlines from end to end, on a problem or two."""

import json
from pathlib import Path

import pytest

from loadtests.bench import headline
from loadtests.bench.headline_auto import EASY, mixture
from models.tasks import sums


@pytest.mark.parametrize(
    "only",
    [
        "headline.auto.*",
        "headline.annealed.*",
        "headline.epf.*.overconfident.*n4",
        pytest.param("headline.ets.*.w16", marks=pytest.mark.slow),
    ],
)
def test_every_part_puts_what_it_was_asked_for(tmp_path: Path, only: str) -> None:
    """Its exit code says whether a figure is missing."""
    assert headline.run.main(["--out", str(tmp_path), "--n", "1", "--only", only]) == 0
    figures = json.loads((tmp_path / "headline.json").read_text())["figures"]
    assert len(figures) >= 2
    for figure in figures.values():
        if figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"]
    again = headline.run.main(["--out", str(tmp_path), "--n", "1", "--only", only])
    assert again == 0
    assert json.loads((tmp_path / "headline.json").read_text())["figures"] == figures


def test_half_of_the_mixture_is_easy_and_the_splits_differ() -> None:
    test = mixture(40, seed=1, split="test")
    lines = [len(one.messages[0]["content"].split(".")) for one in test]
    assert max(lines[::2]) < max(lines[1::2])
    asked = {one.messages[0]["content"] for one in test}
    assert not asked & {
        one.messages[0]["content"] for one in mixture(40, seed=1, split="validation")
    }
    assert EASY.lines[1] < sums.RELEASED.lines[0]
