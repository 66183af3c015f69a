"""Tokens as an upstream names them in log-probabilities: their texts, and numbers of our own.

Servers name a token by its text, and where a token is part of a character the text is lost: they
write U+FFFD, or nothing, with the whole character in its last part (vLLM). So the names are laid
along the answer's text; of the parts of a character the last one gets it, the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engines.base import TokenIds, TopLogps

_MAX_NAMES: Final = 1 << 20
_LOST: Final = "\ufffd"


@dataclass(frozen=True)
class Named:
    """One token: its text, its log-probability in nats, its alternatives, likeliest first."""

    text: str
    logp: float
    tops: tuple[tuple[str, float], ...] = ()


class Lexicon:
    """Numbers for the tokens that an upstream has named, in the order in which it named them.

    They are this engine's own: the upstream knows tokens by other ids, and takes none of these.
    """

    def __init__(self) -> None:
        self._table: list[bytes] = []
        self._ids: dict[bytes, int] = {}

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of tokens that were named."""
        return b"".join(self._table[one] for one in ids)

    def ids_of(self, texts: Sequence[bytes]) -> TokenIds | None:
        """The numbers of tokens; None when there would be too many."""
        if len(self._table) + len(texts) > _MAX_NAMES:
            return None
        return tuple(self._id_of(text) for text in texts)

    def numbered(self, tops: Sequence[tuple[str, float]]) -> TopLogps:
        """Alternatives by number."""
        ids = self.ids_of([text.encode("utf-8", "replace") for text, _ in tops]) or ()
        return tuple(zip(ids, (logp for _, logp in tops), strict=False))

    def _id_of(self, text: bytes) -> int:
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = len(self._table)
            self._table.append(text)
        return found


def spell(text: str, named: Sequence[Named], *, is_cut: bool) -> list[bytes] | None:
    """The bytes of the tokens that make up `text`; those after them were drawn past its end.

    Args:
        text: The answer.
        named: What the upstream named, in order.
        is_cut: Whether the text may end inside a token.

    Returns:
        As many as lie in the text, spelling it; None where the names do not fit it.
    """
    for is_whole in (True, False):
        found = _laid(text, named, is_cut=is_cut, is_whole=is_whole)
        if found is not None:
            return found
    return None


def _laid(text: str, named: Sequence[Named], *, is_cut: bool, is_whole: bool) -> list[bytes] | None:
    """As `spell`, under one reading: the last part of a character is named by all of it, or not."""
    spelled: list[str] = []
    end = 0  # characters spelled
    is_lost = False
    for one in named:
        if end == len(text):
            break
        if not one.text or _LOST in one.text:
            is_lost = True
            spelled.append("")
            continue
        at = _place(text, one.text, end, is_lost=is_lost, is_whole=is_whole)
        if at < 0:
            if is_cut and not is_lost and one.text.startswith(text[end:]):
                break
            return None
        if is_lost:
            spelled[-1] = text[end:at]
            is_lost = False
        spelled.append(one.text)
        end = at + len(one.text)
    if is_lost:
        spelled[-1], end = text[end:], len(text)
    if end < len(text) and not is_cut:
        return None
    return [one.encode("utf-8", "replace") for one in spelled]


def _place(text: str, token: str, end: int, *, is_lost: bool, is_whole: bool) -> int:
    """Where a token stands that comes behind `end`, or behind what was lost there; -1: nowhere."""
    # what was lost is never all ASCII, though it may begin with a blank; a token without any text,
    # such as a marker, loses nothing
    can_stand_here = not is_lost or is_whole or text[end].isascii()
    if can_stand_here and text.startswith(token, end):
        return end
    return text.find(token, end + 1) if is_lost else -1


def read_choice(choice: Mapping[str, Any]) -> tuple[str, list[Named]]:
    """The new text of a choice of either route, and the tokens that it names."""
    delta = choice.get("delta")
    said = delta if isinstance(delta, Mapping) else {}
    text = choice.get("text") or said.get("content") or said.get("refusal") or ""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        return text, []
    if isinstance(logprobs.get("content"), list):
        return text, [_chat_token(one) for one in logprobs["content"]]
    tokens = logprobs.get("tokens") or ()
    logps = logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return text, [
        Named(token, min(0.0, logp or 0.0), _ranked((top or {}).items()))
        for token, logp, top in zip(tokens, logps, tops, strict=True)
    ]


def _chat_token(row: Mapping[str, Any]) -> Named:
    tops = [(str(one["token"]), float(one["logprob"])) for one in row.get("top_logprobs") or ()]
    return Named(str(row["token"]), min(0.0, float(row["logprob"])), _ranked(tops))


def _ranked(tops: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(tops, key=lambda one: -one[1]))
