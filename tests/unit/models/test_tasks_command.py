"""``python -m models.tasks``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.tasks.__main__ import main


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_prints_problems(capsys: pytest.CaptureFixture[str]) -> None:
    records = _printed(capsys, "sums", "--split", "validation", "--seed", "3", "--n", "4")
    assert [record["id"] for record in records] == [f"sums-validation-3-{at}" for at in range(4)]
    assert all(set(record) == {"id", "messages", "answer"} for record in records)
    assert (
        _printed(capsys, "sums", "--split", "validation", "--seed", "3", "--n", "2")
        == (records[:2])
    )


@pytest.mark.parametrize("task", ["sums", "countdown"])
def test_check_prints_one_bare_number_last(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = _printed(capsys, task, "--n", "4")
    contents = [f"The answer is {record['answer']}." for record in records[:3]]
    lines = [
        json.dumps({"id": record["id"], "content": content})
        for record, content in zip(records, [*contents, None], strict=True)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    assert main([task, "--check", str(path)]) == 0
    assert capsys.readouterr().out == "0.75\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "line 1 has no string 'id'"),
        ("[]", "line 1 has no string 'id'"),
        ('{"id": "sums-test-0-0"}', "line 1 has no 'content'"),
        ('{"id": "sums-test-0-0", "content": 3}', "line 1: 'content' is neither"),
        ('\n{"id": "x", "content": ""}', "line 2: unknown problem id 'x'"),
        ('{"id": "countdown-test-0-0", "content": ""}', "is not a sums problem"),
        ('{"id": "sums-test-0-0", "content": ""}\n{oops', "line 2 is not JSON"),
        ("", "holds no answers"),
    ],
)
def test_bad_files_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    assert main(["sums", "--check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sums", "--check", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["chess"], ["sums", "--n", "-1"], ["sums", "--split", "x"]])
def test_bad_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err
