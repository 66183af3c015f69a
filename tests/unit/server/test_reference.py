from __future__ import annotations

from pathlib import Path

from server.reference import page

PAGE = Path(__file__).resolve().parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m server.reference > docs/settings.md"


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    assert all(row.split(" | ")[-1].strip(" |") for row in rows)
