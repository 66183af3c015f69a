"""TextTracker against a brute force that looks at the whole byte string after every token."""

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.base import Finish
from engines.textstop import Stopped, TextTracker

# Few letters, so that needles overlap and straddle; pieces of characters, and invalid bytes.
PLAIN = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"\n", b"a\n\n"]
PIECES = [b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff"]
CHUNKS = [*PLAIN, *PIECES, b"a\xe2\x82", b"\xacb", "é€".encode()]
tokens = st.lists(st.integers(0, len(CHUNKS) - 1), max_size=20)
needles = st.lists(st.text("ab\né€", min_size=1, max_size=4), max_size=3).map(tuple)
priors = st.lists(st.sampled_from(CHUNKS), max_size=6).map(b"".join)


def first_hit(whole: bytes, old: int, texts: tuple[str, ...]) -> tuple[int, str] | None:
    """(start, needle) of the needle completed first after `old`, the longest on ties."""
    hits = []
    for number, text in enumerate(texts):
        needle = text.encode()
        for start in range(len(whole)):
            end = start + len(needle)
            if whole[start:end] == needle and end > old:
                hits.append((end, start, number))
    return None if not hits else (min(hits)[1], texts[min(hits)[2]])


def used_up(prior: bytes, texts: tuple[str, ...]) -> int:
    """Bytes of `prior` that completed boundaries have used up."""
    begin = 0
    while (hit := first_hit(prior[begin:], 0, texts)) is not None:
        begin += hit[0] + len(hit[1].encode())
    return begin


def expected(
    ids: list[int], stop: tuple[str, ...], boundaries: tuple[str, ...], prior: bytes, after: int
) -> tuple[int, bytes, Stopped | None]:
    """(tokens pushed, the text's bytes, why it stopped)."""
    own = b""
    begin = used_up(prior, boundaries)
    for count, token in enumerate(ids, 1):
        old, own = len(own), own + CHUNKS[token]
        hit = first_hit(prior + own, len(prior) + old, stop)
        if hit is not None and count > after:
            text = own[: max(0, hit[0] - len(prior))]
            ends = [len(b"".join(CHUNKS[i] for i in ids[: n + 1])) for n in range(count)]
            inside = sum(end <= len(text) for end in ends)
            return count, text, Stopped(Finish.STOP, hit[1], inside)
        hit = first_hit(prior[begin:] + own, len(prior) - begin + old, boundaries)
        if hit is not None:
            return count, own, Stopped(Finish.BOUNDARY, hit[1], count)
    return len(ids), own, None


@settings(max_examples=500, deadline=None)
@given(tokens, needles, needles, priors, st.integers(0, 3), st.booleans())
@example([8, 9, 1, 2], ("éa",), (), b"", 0, True)
@example([6], ("\n\nb",), ("\n\n",), b"a\n", 0, True)
@example([6], (), ("\n\n",), b"a\n\n", 0, True)
def test_agrees_with_brute_force(
    ids: list[int],
    stop: tuple[str, ...],
    boundaries: tuple[str, ...],
    prior: bytes,
    after: int,
    is_final: bool,
) -> None:
    pushed, text, why = expected(ids, stop, boundaries, prior, after)
    tracker = TextTracker(CHUNKS, stop, boundaries, prior, stop_after=after)
    released, num_taken = "", 0
    stopped = None
    for count, token in enumerate(ids, 1):
        stopped = tracker.push(token)
        piece, num_tokens = tracker.take()
        released += piece
        num_taken += num_tokens
        assert text.decode("utf-8", "replace").startswith(released)
        if stopped is not None:
            assert count == pushed
            break
        assert tracker.num_tokens == count
    assert stopped == why
    assert tracker.text == text.decode("utf-8", "replace")
    assert num_taken <= tracker.num_tokens
    if stopped is not None or is_final:
        piece, num_tokens = tracker.take(final=True)
        assert released + piece == tracker.text
        assert num_taken + num_tokens == tracker.num_tokens


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 9]), max_size=20), needles, st.data())
def test_where_a_stop_cuts_does_not_depend_on_the_tokens(
    ids: list[int], stop: tuple[str, ...], data: st.DataObject
) -> None:
    whole = b"".join(CHUNKS[i] for i in ids)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    texts = []
    for edges in (cuts, list(range(len(whole) + 1))):
        table = [whole[a:b] for a, b in pairwise(edges)]
        tracker = TextTracker(table, stop)
        for token in range(len(table)):
            if tracker.push(token) is not None:
                break
        texts.append(tracker.text)
    assert texts[0] == texts[1]
