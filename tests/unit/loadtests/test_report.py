from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtests.driver import result_of
from loadtests.measure import Record
from loadtests.plan import Plan
from loadtests.report import main, render


def result(strategy: str = "single") -> dict[str, Any]:
    records = [
        Record(i, strategy, float(i), i + 0.1, i + 2.0, (i + 1.0, i + 1.5), "ok", answer_tokens=4)
        for i in range(5)
    ]
    failed = Record(5, strategy, 5.0, 5.0, 5.2, (), "error", 429, "over<loaded>")
    plan = Plan([], {strategy: 1.0}, [[]], "model <i>")
    return result_of(plan, [*records, failed], {"command": "<script>alert(1)</script>"})


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_and_fetches_nothing() -> None:
    page = Page(render(result()))
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert page.tags.count("circle") == 5
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}


def test_hostile_text_stays_text() -> None:
    text = render(result('"><script>x</script>'))
    assert "<script" not in text
    assert "over&lt;loaded&gt;" in text
    assert "model &lt;i&gt;" in text


def test_a_run_without_answers_has_a_table_and_no_charts() -> None:
    empty = result_of(Plan([], {"single": 1.0}, [[]], "m"), [], {})
    page = Page(render(empty))
    assert "table" in page.tags
    assert "svg" not in page.tags


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.json", tmp_path / "out.html"
    source.write_text(json.dumps(result()))
    assert main([str(source), "--out", str(out)]) == 0
    assert out.read_text() == render(json.loads(source.read_text()))
    source.write_text("{}")
    assert main([str(source), "--out", str(out)]) == 2
    assert "is no result of the driver" in capsys.readouterr().err
