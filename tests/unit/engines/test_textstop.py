"""TextTracker on the cases its docstring names."""

import pytest

from engines.base import Finish
from engines.textstop import Stopped, TextTracker

BYTES = [bytes([b]) for b in range(256)]


def feed(tracker: TextTracker, data: bytes) -> Stopped | None:
    stopped = None
    for byte in data:
        stopped = tracker.push(byte)
        if stopped is not None:
            break
    return stopped


def test_characters_are_held_until_they_are_whole() -> None:
    tracker = TextTracker(BYTES)
    feed(tracker, b"a\xe2\x82")
    assert not tracker.is_whole
    assert tracker.take() == ("a", 1)
    feed(tracker, b"\xac")
    assert tracker.is_whole
    assert tracker.take() == ("€", 3)


def test_an_incomplete_end_is_replaced_only_at_the_end() -> None:
    tracker = TextTracker(BYTES)
    feed(tracker, b"a\xe2\x82")
    assert tracker.take() == ("a", 1)
    assert tracker.take(final=True) == ("\ufffd", 2)
    assert tracker.text == "a\ufffd"


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    tracker = TextTracker(BYTES, stop=("STOP",))
    assert feed(tracker, b"so ST") is None
    assert tracker.take() == ("so ", 3)
    assert feed(tracker, b"ART") is None
    assert tracker.take() == ("START", 5)


def test_a_stop_string_over_many_tokens_cuts_text_and_tokens() -> None:
    tracker = TextTracker([b"say ", b"it S", b"TO", b"P now"], stop=("STOP",))
    assert [tracker.push(i) for i in range(3)] == [None] * 3
    assert tracker.push(3) == Stopped(Finish.STOP, "STOP", 1)
    assert tracker.text == "say it "
    assert tracker.take() == ("say it ", 1)


def test_a_boundary_keeps_the_whole_token_that_completes_it() -> None:
    tracker = TextTracker([b"one\n", b"\ntwo"], boundaries=("\n\n",))
    assert tracker.push(0) is None
    assert tracker.push(1) == Stopped(Finish.BOUNDARY, "\n\n", 2)
    assert tracker.text == "one\n\ntwo"


def test_a_stop_string_wins_over_a_boundary_in_the_same_token() -> None:
    tracker = TextTracker([b"x\nEND"], stop=("END",), boundaries=("\n",))
    assert tracker.push(0) == Stopped(Finish.STOP, "END", 0)
    assert tracker.text == "x\n"


def test_needles_may_begin_in_the_text_before() -> None:
    tracker = TextTracker(BYTES, stop=("STOP",), prior=b"say ST")
    stopped = feed(tracker, b"OP")
    assert stopped == Stopped(Finish.STOP, "STOP", 0)
    assert tracker.text == ""


def test_the_blank_line_of_the_last_step_does_not_end_the_next() -> None:
    tracker = TextTracker(BYTES, boundaries=("\n\n",), prior=b"one\n\n")
    assert feed(tracker, b"\n") is None
    assert feed(tracker, b"\n") == Stopped(Finish.BOUNDARY, "\n\n", 2)


def test_stop_strings_before_min_tokens_are_text() -> None:
    tracker = TextTracker(BYTES, stop=("aa",), stop_after=2)
    assert feed(tracker, b"aa") is None
    assert feed(tracker, b"a") == Stopped(Finish.STOP, "aa", 1)
    assert tracker.text == "a"


@pytest.mark.parametrize("stop", [("ab", "xabc"), ("xabc", "ab")])
def test_the_stop_string_completed_first_wins(stop: tuple[str, ...]) -> None:
    tracker = TextTracker([b"xabc"], stop=stop)
    assert tracker.push(0) == Stopped(Finish.STOP, "ab", 0)
    assert tracker.text == "x"


def test_of_two_completed_together_the_longest_wins() -> None:
    tracker = TextTracker(BYTES, stop=("b", "ab"))
    assert feed(tracker, b"ab") == Stopped(Finish.STOP, "ab", 0)


def test_a_stop_string_without_a_utf8_form_never_matches() -> None:
    tracker = TextTracker(BYTES, stop=("\ud800",))
    assert feed(tracker, b"\xed\xa0\x80") is None


def test_special_tokens_hold_no_text_but_count() -> None:
    tracker = TextTracker([b"a", b""])
    tracker.push(0)
    tracker.push(1)
    assert tracker.take() == ("a", 2)
    assert tracker.num_tokens == 2
