"""Where an answer's text ends, found token by token.

One `TextTracker` follows one child of `Engine.sample`: it turns token ids into text that may be
streamed, finds stop strings and step boundaries wherever they straddle tokens, and says how many
whole tokens the final text holds. It works on bytes, because tokens may end inside a character,
and it knows neither eos ids nor length limits.

Laws (the text of bytes B is ``B.decode("utf-8", errors="replace")``):

- A needle (stop string or boundary) is *completed* by the token that holds its last byte; its
  first bytes may lie in `prior`. Of several needles the one completed first, byte by byte, wins,
  and of those completed by the same byte the longest, then the first listed. So where the text
  ends does not depend on how the bytes were cut into tokens.
- A stop string and a boundary completed by the same token: the stop string wins, or its text
  would be shown.
- Stop strings may overlap earlier occurrences; boundaries may not, so that the blank line that
  ended the last step does not end the next one again.
- A stop string that begins in `prior` leaves no text and no tokens of this child: what came
  before is not taken back.
- `take` never releases text that a later token could change or a later stop string could cut off.

It does not handle a stop string that contains U+FFFD where that stands for invalid bytes, and one
that has no UTF-8 form (a lone surrogate) never matches.
"""

from __future__ import annotations

from bisect import bisect_right
from codecs import utf_8_decode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from engines.base import Finish

_MAX_MEMO: Final = 1 << 16


class Hit(NamedTuple):
    """A completed needle: its number, and where it lies relative to the chunk's first byte."""

    needle: int
    start: int
    end: int


class Scanner:
    """Finds needles in a stream of chunks. The state is the bytes that may begin a needle.

    Immutable but for a memo of its transitions, and shared by every tracker with the same needles;
    a generation visits few states, so a step is nearly always one dictionary lookup.
    """

    def __init__(self, needles: tuple[bytes, ...]) -> None:
        self._needles = needles
        self._heads = frozenset(
            needle[:size] for needle in needles for size in range(1, len(needle))
        )
        self._max_head = max(map(len, needles), default=1) - 1
        self._memo: dict[tuple[bytes, bytes], tuple[bytes, Hit | None]] = {}

    def step(self, state: bytes, chunk: bytes) -> tuple[bytes, Hit | None]:
        """The state after `chunk`, and the first needle that it completed."""
        key = (state, chunk)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MAX_MEMO:
                self._memo.clear()
            window = state + chunk
            found = self._memo[key] = (self._tail(window), self._first(window, len(state)))
        return found

    def after(self, text: bytes, *, overlapping: bool) -> bytes:
        """The state after `text`; without overlap, completed needles are used up."""
        if overlapping:
            return self._tail(text)
        while (hit := self._first(text, 0)) is not None:
            text = text[hit.end :]
        return self._tail(text)

    def _tail(self, window: bytes) -> bytes:
        for size in range(min(self._max_head, len(window)), 0, -1):
            if (tail := window[-size:]) in self._heads:
                return tail
        return b""

    def _first(self, window: bytes, old: int) -> Hit | None:
        best: tuple[int, int, int] | None = None  # (end, start, needle): smallest wins
        for number, needle in enumerate(self._needles):
            # Those ending inside the old bytes were reported, or passed over, before.
            start = window.find(needle, max(0, old - len(needle) + 1))
            if start >= 0 and (best is None or (start + len(needle), start, number) < best):
                best = (start + len(needle), start, number)
        return None if best is None else Hit(best[2], best[1] - old, best[0] - old)


@lru_cache(maxsize=256)
def _scanner(texts: tuple[str, ...]) -> tuple[Scanner, tuple[str, ...]] | None:
    """A shared scanner and the text of each of its needles; None without needles."""
    needles: dict[bytes, str] = {}
    for text in texts:
        try:
            needle = text.encode()
        except UnicodeEncodeError:  # a lone surrogate cannot occur in decoded text
            continue
        if needle:
            needles.setdefault(needle, text)
    return (Scanner(tuple(needles)), tuple(needles.values())) if needles else None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why the text ends here.

    Attributes:
        finish: Finish.STOP or Finish.BOUNDARY.
        matched: The stop string or boundary.
        num_tokens: Leading pushed tokens that lie wholly inside the text; the rest is overrun.
    """

    finish: Literal[Finish.STOP, Finish.BOUNDARY]
    matched: str
    num_tokens: int


class TextTracker:
    """Follows one child's text; not shared between threads at the same time.

    Args:
        decode_token_bytes: The bytes of every token id; empty for special tokens.
        stop: Strings that end the answer and are cut off.
        boundaries: Strings that end a step; the whole token completing one stays.
        prior: The answer's bytes before this child.
        stop_after: Stop strings completed by the first so many pushed tokens are plain text
            (`Sampling.min_tokens`, less the answer's tokens before this child).
    """

    __slots__ = (
        "_boundary",
        "_boundary_state",
        "_buffer",
        "_ends",
        "_is_plain",
        "_released",
        "_stop",
        "_stop_after",
        "_stop_state",
        "_table",
        "_taken",
        "_text_end",
    )

    def __init__(
        self,
        decode_token_bytes: Sequence[bytes],
        stop: tuple[str, ...] = (),
        boundaries: tuple[str, ...] = (),
        prior: bytes = b"",
        *,
        stop_after: int = 0,
    ) -> None:
        self._table = decode_token_bytes
        self._stop = _scanner(stop) if stop else None
        self._boundary = _scanner(boundaries) if boundaries else None
        self._is_plain = self._stop is None and self._boundary is None
        self._stop_state = self._stop[0].after(prior, overlapping=True) if self._stop else b""
        self._boundary_state = (
            self._boundary[0].after(prior, overlapping=False) if self._boundary else b""
        )
        self._stop_after = stop_after
        self._buffer = bytearray()
        self._ends: list[int] = []  # bytes up to and including each token
        self._released = 0  # bytes handed out by take
        self._taken = 0  # tokens handed out by take
        self._text_end: int | None = None  # bytes of the final text, once a stop string was found

    def push(self, token_id: int) -> Stopped | None:
        """Append one token; nothing may be pushed after a `Stopped`."""
        chunk = self._table[token_id]
        self._buffer += chunk
        self._ends.append(len(self._buffer))
        return None if self._is_plain else self._scan(chunk)

    def take(self, *, final: bool = False) -> tuple[str, int]:
        """Text that is decided since the last call, and the number of whole tokens it brings.

        After a `Stopped`, or with `final`, everything up to the text's end.
        """
        end = self._text_end
        if end is None:
            end = len(self._buffer)
            if not final:
                end -= len(self._stop_state)
        if end <= self._released and self._taken == len(self._ends):
            return "", 0
        text = ""
        if end > self._released:
            is_end = final or self._text_end is not None
            text, used = utf_8_decode(self._buffer[self._released : end], "replace", is_end)
            self._released += used
        before = self._taken
        if self._released == len(self._buffer):
            self._taken = len(self._ends)
        else:
            self._taken = max(before, bisect_right(self._ends, self._released))
        return text, self._taken - before

    @property
    def text(self) -> str:
        """The whole text so far, up to the stop string when one was found."""
        return self._buffer[: self._text_end].decode("utf-8", "replace")

    @property
    def num_tokens(self) -> int:
        """Leading tokens wholly inside `text`."""
        if self._text_end is None:
            return len(self._ends)
        return bisect_right(self._ends, self._text_end)

    @property
    def is_whole(self) -> bool:
        """Whether the bytes so far end between two characters."""
        return utf_8_decode(self._buffer[-4:], "replace", False)[1] == min(4, len(self._buffer))

    def _scan(self, chunk: bytes) -> Stopped | None:
        if self._stop is not None:
            scanner, texts = self._stop
            self._stop_state, hit = scanner.step(self._stop_state, chunk)
            if hit is not None and len(self._ends) > self._stop_after:
                self._text_end = max(0, len(self._buffer) - len(chunk) + hit.start)
                return Stopped(Finish.STOP, texts[hit.needle], self.num_tokens)
        if self._boundary is not None:
            scanner, texts = self._boundary
            self._boundary_state, hit = scanner.step(self._boundary_state, chunk)
            if hit is not None:
                self._text_end = len(self._buffer)
                return Stopped(Finish.BOUNDARY, texts[hit.needle], len(self._ends))
        return None
