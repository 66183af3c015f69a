"""The question which candidate is best, and what counts as an answer to it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.selection import named_candidate, question_overhead, selection_question


@pytest.mark.parametrize(
    ("reply", "position"),
    [
        ("Best candidate: 2", 1),
        ("**Best candidate:** 3", 2),
        ("Candidate 1 slips, candidate 3 does not.\nBest candidate: 3.", 2),
        ("Best candidate: 1\nNo, wait.\nThe best candidate is number 2", 1),
        ("I would take Candidate 2.", 1),
        ("candidate #3, because candidate 3 shows its work", 2),
        ("Candidate 1 or candidate 2", None),
        ("Best candidate: 4", None),
        ("Best candidate: 0", None),
        ("2", None),
        ("The answer is 3.", None),
        ("", None),
    ],
)
def test_what_a_reply_names(reply: str, position: int | None) -> None:
    assert named_candidate(reply, 3) == position


def test_the_question_follows_the_users_text() -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    system, user = selection_question(messages, ["It is 2.", " It is 3.\n"])
    assert system == messages[0]
    assert user["role"] == "user"
    assert user["content"].startswith("1 + 1?\n\n")
    assert user["content"].endswith("Candidate 1:\nIt is 2.\n\nCandidate 2:\nIt is 3.")
    (*before, last) = selection_question(
        (*messages, {"role": "assistant", "content": "It"}), ["a", "b"]
    )
    assert (len(before), last["role"]) == (3, "user")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("ab \n", min_size=1, max_size=9), min_size=2, max_size=30))
def test_the_overhead_is_an_upper_bound(texts: list[str]) -> None:
    (user,) = selection_question(({"role": "user", "content": "?"},), texts)
    own = len("?") + sum(len(text.strip()) for text in texts)
    assert len(user["content"]) - own <= question_overhead(len(texts))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60), st.integers(1, 20))
def test_any_reply_is_read(reply: str, count: int) -> None:
    found = named_candidate(reply, count)
    assert found is None or 0 <= found < count
