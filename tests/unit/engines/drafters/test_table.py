"""Tables: counting (worked example E1), bounds, files, and the command that builds them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from engines.drafters import table as tables
from engines.drafters.adaptive import open_drafter
from engines.drafters.errors import DrafterError
from engines.drafters.rows import pair, single
from engines.drafters.table import count, load
from server.cli import main

ROOT = Path(__file__).resolve().parents[4]
DOCUMENTS = ((5, 7, 9), (5, 7, 9), (5, 7, 9), (5, 7, 2), (1,), ())


def test_e1_weights_are_shares_of_the_row() -> None:
    table = count(DOCUMENTS)
    assert table.row(pair(5, 7)) == pytest.approx({9: 0.75, 2: 0.25}, abs=1e-5)
    assert table.row(single(5)) == {7: 1.0}
    assert table.row(pair(7, 9)) is None  # documents are not joined
    assert (table.about.documents, table.about.tokens) == (6, 13)


def test_rows_and_successors_are_bounded() -> None:
    assert len(count(DOCUMENTS, max_rows=2)) == 2
    assert count(DOCUMENTS, row_cap=1).row(pair(5, 7)) == pytest.approx({9: 0.75})
    texts = [(i, i + 1, i + 2) for i in range(50)]
    assert len(count(texts, max_counts=20)) <= 20


def test_counts_are_bounded_within_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [0]

    class Watched(Counter[tuple[int, int]]):
        def __setitem__(self, key: tuple[int, int], seen: int) -> None:
            super().__setitem__(key, seen)
            held[0] = max(held[0], len(self))

    monkeypatch.setattr(tables, "Counter", Watched)
    count([range(500)], max_counts=20)
    assert 20 < held[0] <= 22  # a token adds two counts


@pytest.mark.parametrize("documents", [DOCUMENTS, ()])
def test_a_saved_table_is_the_same(documents: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    table = count(documents, tokenizer_hash="h")
    table.save(tmp_path / "t.npz")
    again = load(tmp_path / "t.npz")
    assert again.about == table.about
    for key in [*table.keys.tolist(), 3]:
        assert again.row(key) == table.row(key)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with pytest.raises(DrafterError, match="not a table"):
        load(path)
    count(DOCUMENTS).save(path)
    whole = path.read_bytes()
    for bad in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(bad)
        with pytest.raises(DrafterError, match="not a table"):
            load(path)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("12 + 12 = 24\n" * 3)
    (tmp_path / "b.jsonl").write_text('{"text": "1 + 2 = 3"}\n{"text": "2 + 2 = 4"}\n')
    out = tmp_path / "t.npz"
    corpus = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    model = str(ROOT / "models" / "sapling_sums")
    assert main(["drafts", "build", *corpus, "--tokenizer", model, "--out", str(out)]) == 0
    assert main(["drafts", "inspect", str(out)]) == 0
    assert "documents 3" in capsys.readouterr().out
    key = int(load(out).keys[0])
    drafter = open_drafter(100_000, {"table": str(out)})
    assert drafter.propose((key >> 32, key & 0xFFFFFFFF), 4, run="r", tenant="t").tokens
    for bad in ("not json", '{"text": null}', '["1"]'):
        (tmp_path / "b.jsonl").write_text('{"text": "1 + 2 = 3"}\n\n' + bad)
        assert main(["drafts", "build", *corpus, "--tokenizer", model, "--out", str(out)]) == 1
        assert "b.jsonl:3: " in capsys.readouterr().err
