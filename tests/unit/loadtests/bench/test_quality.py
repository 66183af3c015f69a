"""The bench of quality: what it asks for, and what it writes, on the echo engine."""

import json
from pathlib import Path

import pytest

from loadtests.bench import quality
from loadtests.bench.comparison import baseline_of, figure_names, has_width
from loadtests.bench.figures import Bench, parse_options
from loadtests.bench.quality_page import Point, write_page
from loadtests.bench.quality_settings import Settings
from models.evaluate import Measured

ECHO = """
[models.echo]
reward_model = "seven"
[models.echo.engine]
kind = "echo"
[reward_models.seven]
kind = "constant"
"""


def settings(*arguments: str, out: Path) -> Settings:
    options = parse_options("quality", ["--out", str(out), *arguments], quality.add_arguments)
    return quality.settings_of(Bench("quality", options))


def test_lists_and_names_are_read(tmp_path: Path) -> None:
    got = settings(
        "--budgets", "800, 200", "--seeds", "3,4", "--strategies", "ets,beam", out=tmp_path
    )
    assert (got.budgets, got.seeds, got.strategies) == ((800, 200), (3, 4), ("ets", "beam"))
    assert settings("--seed", "9", out=tmp_path).seeds == (9,)
    file = settings("--problems", "Some-Dir/MATH.500.jsonl", out=tmp_path)
    assert (file.task, file.file) == ("math_500", Path("Some-Dir/MATH.500.jsonl"))


def test_every_figure_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = figure_names(settings(out=tmp_path), 800)
    assert len(set(names)) == len(names)
    assert "quality.sums.accuracy.ets.b800" in names
    assert "quality.sums.z.ets_minus_self_consistency" in names
    assert "quality.sums.gain.self_consistency.b800" not in names  # gains are over it
    only = settings("--strategies", "beam,single", out=tmp_path)
    assert baseline_of(only.strategies) == "beam"
    assert not any(".z." in name for name in figure_names(only, 800))
    assert (has_width("ets"), has_width("single")) == (True, False)


def test_a_server_s_settings_and_a_file_of_questions_go_through(tmp_path: Path) -> None:
    config, problems = tmp_path / "bough.toml", tmp_path / "mine.jsonl"
    config.write_text(ECHO)
    rows = [{"question": f"Say {at}.", "answer": at} for at in range(60)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    arguments = [
        "--out",
        str(out),
        "--n",
        "8",
        "--problems",
        str(problems),
        "--config",
        str(config),
    ]
    arguments += ["--strategies", "single,best_of_n", "--budgets", "60,30", "--max-tokens", "16"]
    assert quality.run.main(arguments) == 0
    figures = json.loads((out / "quality.json").read_text())["figures"]
    accuracy = figures["quality.mine.accuracy.best_of_n.b60"]
    assert accuracy["n"] == 8
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert figures["quality.mine.accuracy.single.b30"]["n"] == 2
    assert figures["quality.mine.peak_kv.best_of_n.b60"]["value"] > 0
    page = (out / "quality.html").read_text()
    assert page.count("<svg") == 3
    assert "best_of_n" in page


@pytest.mark.parametrize(
    ("toml", "said"),
    [("[models.a.engine]\nkind = 'nonsense'\n", "nonsense"), ("limits = 3\n", "limits")],
)
def test_settings_that_cannot_be_used_end_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toml: str, said: str
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(toml)
    assert quality.run.main(["--out", str(tmp_path / "out"), "--config", str(config)]) == 1
    assert said in capsys.readouterr().err


def test_the_page_needs_nothing_beside_it_and_escapes_what_it_shows(tmp_path: Path) -> None:
    share = Measured(0.5, 10, 0.3, 0.7)
    points = [
        Point("<b>", "width=4", 100, share, None, 90.0, 0.1, 50.0),
        Point("ets", "width=4", 100, share, Measured(0.1, 10, -0.1, 0.3), 95.0, 0.2, 40.0),
        Point("ets", "width=8", 200, share, Measured(0.1, 10, -0.1, 0.3), 190.0, 0.4, 80.0),
    ]
    page = tmp_path / "page.html"
    write_page(page, points, title="A & B", baseline="<b>", about={"seed": "7"})
    text = page.read_text()
    assert "A &amp; B" in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "+0.100" in text
    for outside in ("src=", "<script", "<link", "@import"):
        assert outside not in text
