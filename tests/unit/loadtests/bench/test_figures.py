"""Figures are kept, resumed and chosen as design.md §9 says."""

import json
from pathlib import Path

import pytest

from loadtests.bench.figures import (
    Bench,
    BenchError,
    Journal,
    Options,
    bench_command,
    parse_options,
)


def test_options_are_read() -> None:
    line = ["--out", "x", "--seed", "7", "--n", "9", "--only", "a.*,b.?", "--limit-s", "1.5"]
    assert parse_options("engine", line) == Options(Path("x"), 7, 9, ("a.*", "b.?"), 1.5)


@pytest.mark.parametrize("line", [["--n", "0"], ["--seed", "x"], ["--what"]])
def test_wrong_options_exit(line: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options("engine", line)


def test_the_file_has_the_documented_shape(tmp_path: Path) -> None:
    bench = Bench("toy", Options(tmp_path, seed=7))
    bench.put("toy.speed", 2.5, unit="ratio", n=3, low=2.0, high=3.0, better="higher")
    content = json.loads((tmp_path / "toy.json").read_text())
    assert content["figures"] == {
        "toy.speed": {
            "value": 2.5,
            "unit": "ratio",
            "n": 3,
            "low": 2.0,
            "high": 3.0,
            "better": "higher",
        }
    }
    assert content["seed"] == 7
    assert set(content) >= {"command", "seed", "revision", "hardware", "started_at"}
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.json"]


def test_only_what_matches_is_wanted_and_kept(tmp_path: Path) -> None:
    bench = Bench("toy", Options(tmp_path, only=("toy.a.*", "toy.b")))
    assert [bench.wants(name) for name in ("toy.a.x", "toy.b", "toy.bb")] == [True, True, False]
    bench.put("toy.bb", 1, unit="ratio", n=1)
    assert bench.get("toy.bb") is None


def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    Bench("toy", Options(tmp_path, seed=1)).put("toy.a", 1, unit="ratio", n=1)
    started = json.loads((tmp_path / "toy.json").read_text())["started_at"]
    again = Bench("toy", Options(tmp_path, seed=1))
    assert not again.wants("toy.a")
    assert again.wants("toy.b")
    again.put("toy.b", 2, unit="ratio", n=1)
    content = json.loads((tmp_path / "toy.json").read_text())
    assert set(content["figures"]) == {"toy.a", "toy.b"}
    assert content["started_at"] == started


@pytest.mark.parametrize("other", [Options(seed=2), Options(seed=1, n=5)])
def test_figures_of_another_seed_or_size_are_computed_again(tmp_path: Path, other: Options) -> None:
    Bench("toy", Options(tmp_path, seed=1)).put("toy.a", 1, unit="ratio", n=1)
    asked = Options(tmp_path, other.seed, other.n)
    assert Bench("toy", asked).wants("toy.a")


def test_figures_of_other_code_stay_until_they_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Bench("toy", Options(tmp_path))
    first.put("toy.a", 1, unit="ratio", n=1)
    first.put("toy.b", 1, unit="ratio", n=1)
    monkeypatch.setattr("loadtests.bench.figures.code_hash", lambda: "other")
    again = Bench("toy", Options(tmp_path))
    assert again.wants("toy.a")
    again.put("toy.a", 2, unit="ratio", n=1)
    assert not again.wants("toy.a")
    figures = json.loads((tmp_path / "toy.json").read_text())["figures"]
    assert {name: figure["value"] for name, figure in figures.items()} == {"toy.a": 2, "toy.b": 1}
    assert again.report()


def test_time_runs_out(tmp_path: Path) -> None:
    now = [0.0]
    bench = Bench("toy", Options(tmp_path, limit_s=10), clock=lambda: now[0])
    assert not bench.out_of_time()
    now[0] = 10.0
    assert bench.out_of_time()
    assert not Bench("toy", Options(tmp_path), clock=lambda: now[0]).out_of_time()


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text("{")
    with pytest.raises(BenchError, match="move it away"):
        Bench("toy", Options(tmp_path))


def test_a_figure_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        Bench("toy", Options(tmp_path)).put("toy.a", float("nan"), unit="ratio", n=1)


def test_a_command_prints_figures_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @bench_command("toy")
    def run(bench: Bench) -> None:
        if bench.wants("toy.a"):
            bench.put("toy.a", 1.25, unit="ratio", n=1, better="higher")
        bench.wants("toy.late")

    assert run.main(["--out", str(tmp_path), "--only", "toy.a"]) == 0
    assert "1.25" in capsys.readouterr().out
    assert run.main(["--out", str(tmp_path)]) == 1
    assert "not computed: toy.late" in capsys.readouterr().out
    assert run.main(["--out", str(tmp_path), "--only", "nothing"]) == 1


def test_figures_survive_a_crash(tmp_path: Path) -> None:
    @bench_command("toy")
    def run(bench: Bench) -> None:
        bench.put("toy.a", 1, unit="ratio", n=1)
        raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError):
        run.main(["--out", str(tmp_path)])
    assert not Bench("toy", Options(tmp_path)).wants("toy.a")


def test_a_journal_resumes_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add("a", {"right": True})
    with path.open("a") as file:
        file.write('{"key": "b", "rig')
    journal = Journal(path)
    assert set(journal.rows) == {"a"}
    journal.add("c", {"right": False})
    assert Journal(path).rows["c"] == {"key": "c", "right": False}


def test_a_bench_that_cannot_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @bench_command("toy")
    def run(bench: Bench) -> None:
        raise BenchError("the models are not there; run `make models`")

    assert run.main(["--out", str(tmp_path)]) == 1
    assert "toy: the models are not there" in capsys.readouterr().err
