"""Questions from tasks and from files as others share them."""

import json
from pathlib import Path

import pytest

from loadtests.bench.figures import BenchError
from loadtests.bench.questions import of_file, of_task
from models.tasks import TaskError

GSM8K = {"question": "Tom has 3 apples and buys 4. How many now?", "answer": "3+4=7\n#### 7"}
MATH = {"problem": "What is 1/2 of 3?", "solution": r"It is $\boxed{\frac{3}{2}}$."}


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def numbered(count: int) -> list[object]:
    return [{"question": f"What is {at} plus 1?", "answer": at + 1} for at in range(count)]


def test_answers_are_compared_by_value(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [GSM8K, MATH])
    found = {}
    for split in ("validation", "test"):
        try:
            for one in of_file(file, split=split)(10):  # type: ignore[arg-type]
                found[one.messages[0]["content"]] = one
        except BenchError:
            continue
    tom, half = found[GSM8K["question"]], found[MATH["problem"]]
    assert tom.is_right("He has 3+4=7 apples. The answer is 7.")
    assert not tom.is_right("The answer is 8.")
    assert not tom.is_right("")
    assert half.is_right(r"\boxed{1.5}")
    assert half.is_right("The answer is 3/2")


def test_a_fifth_is_for_validation_whatever_the_order(tmp_path: Path) -> None:
    rows = numbered(500)
    splits: dict[str, set[str]] = {}
    for order in (rows, rows[::-1]):
        file = written(tmp_path / "b.jsonl", order)
        for split in ("validation", "test"):
            texts = {one.messages[0]["content"] for one in of_file(file, split=split)(1000)}  # type: ignore[arg-type]
            assert splits.setdefault(split, texts) == texts
    assert splits["validation"].isdisjoint(splits["test"])
    assert len(splits["validation"] | splits["test"]) == 500
    # of 500 at a chance of a fifth: 5 standard deviations are 45
    assert abs(len(splits["validation"]) - 100) <= 45


def test_conversations_are_taken_as_they_are(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rows = [
        {"messages": [*messages, {"role": "user", "content": str(at)}], "answer": 2}
        for at in range(40)
    ]
    (first,) = of_file(written(tmp_path / "c.jsonl", list(rows)), split="test")(1)
    assert first.messages[:2] == tuple(messages)
    assert first.is_right("2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "a"}', "needs question, problem, prompt or messages, and answer"),
        ('{"answer": 3}', "needs question"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
    ],
)
def test_a_line_that_is_no_question_is_refused_by_number(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(GSM8K) + "\n" + text + "\n")
    with pytest.raises(BenchError, match=f"d.jsonl:2.*{said}"):
        of_file(file, split="test")


def test_an_empty_split_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="none of its 0 questions is for test"):
        of_file(written(tmp_path / "e.jsonl", []), split="test")
    with pytest.raises(BenchError, match="cannot be read"):
        of_file(tmp_path / "nothing.jsonl", split="test")


def test_a_task_draws_what_its_seed_says() -> None:
    one = of_task("countdown", seed=3, split="test")(4)
    again = of_task("countdown", seed=3, split="test")(6)
    assert [a.messages for a in one] == [b.messages for b in again[:4]]
    with pytest.raises(TaskError, match="unknown task"):
        of_task("chess", seed=0, split="test")
