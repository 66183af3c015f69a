"""Which text is decided: the part that every candidate that may still be returned agrees on.

The agreement is computed in every run, streamed or not, and never influences which answer is
chosen. A candidate is one of:

- a finished branch that is neither pruned nor dropped: its text is final;
- an open branch that may be expanded again, or was not expanded yet: it may be returned as it is,
  so nothing beyond its text is decided;
- a child in flight under a branch that was promised no further children (`last`) or was pruned:
  what it gained so far is final, because engines never take back a delta. The promised parent
  itself then no longer counts, and once the children are there, they stand for it.

Candidates are only ever taken away or made longer, so what was decided stays decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from engines.base import Delta, TokenIds, TopLogps
from search.branch import Branch, Slot

Decode: TypeAlias = Callable[[TokenIds], str]


@dataclass(frozen=True)
class Piece:
    """Text that is decided for good, with the tokens known to be decided with it.

    Concatenated, the texts of a run are its answer and the tokens are its answer's tokens; a
    token may come a piece later than its text.
    """

    text: str
    token_ids: TokenIds = ()
    logps: tuple[float, ...] = ()
    top_logps: tuple[TopLogps, ...] | None = None


class _Token(NamedTuple):
    token: int
    logp: float
    tops: TopLogps | None


@dataclass
class _Flight:
    """A child in flight: what it gained beyond the text and the tokens already decided.

    `tokens` is None until they are first needed: most children never come to it.
    """

    parent: Branch
    text: str
    tokens: list[_Token] | None = None
    unsettled: list[_Token] = field(default_factory=list)
    unsettled_text: str = ""
    held: str = ""

    def gain(self, delta: Delta) -> None:
        # A step may end inside a character; what stands for it is replaced by the next step.
        gained = self.held + delta.text
        sure = gained.rstrip("�")
        self.held = gained[len(sure) :]
        self.text += sure
        self.unsettled_text += sure
        self.unsettled += _tokens(delta.token_ids, delta.logps, delta.top_logps)

    def settle(self, decode: Decode, start: int) -> list[_Token]:
        """The tokens behind the first `start` ones of the answer that surely belong to it."""
        if self.tokens is None:
            self.tokens = _tail_tokens(self.parent, start)
        # Tokens run ahead of the text while a stop string may be forming; they count once their
        # text is out, because only then do they surely belong to the answer.
        ids = tuple(one.token for one in self.unsettled)
        for size in range(len(ids), 0, -1):
            covered = len(decode(ids[:size]))
            if covered <= len(self.unsettled_text):
                self.tokens += self.unsettled[:size]
                self.unsettled = self.unsettled[size:]
                self.unsettled_text = self.unsettled_text[covered:]
                break
        return self.tokens


class Agreement:
    """The common beginning of every candidate of one run.

    Args:
        root: The root; a candidate until something stands for it.
        decode: The engine's, for telling which tokens a text already covers.
        emit: Called with every new piece.
    """

    def __init__(self, root: Branch, decode: Decode, emit: Callable[[Piece], None]) -> None:
        self._decode = decode
        self._emit = emit
        self._known: dict[int, Branch] = {root.id: root}
        self._static: dict[int, Branch] = {root.id: root}
        self._flights: dict[int, _Flight] = {}
        self._num_flying: dict[int, int] = {}
        self._has_children: set[int] = set()
        self._promised: set[int] = set()
        self._excluded: set[int] = set()
        self._in_scope: dict[int, bool] = {root.id: True}
        self._tail: str | None = None
        self.text = ""
        self.num_tokens = 0

    def promise(self, branch: Branch) -> None:
        """The branch gets no children beyond those begun now."""
        self._promised.add(branch.id)

    def settle(self, branches: Iterable[Branch]) -> None:
        """These get no children beyond those that they have, which stand for them from now on."""
        for branch in branches:
            self._promised.add(branch.id)
            self._update(branch.id)
        self._advance()

    def begin(self, slot: Slot) -> None:
        """A child is in flight; a promise for its parent comes before."""
        parent = slot.parent.id
        self._in_scope[slot.id] = self._in_scope[parent]
        self._num_flying[parent] = self._num_flying.get(parent, 0) + 1
        self._flights[slot.id] = _Flight(slot.parent, slot.parent.text_from(len(self.text)))
        self._update(parent)

    def gain(self, slot: Slot, delta: Delta) -> None:
        """A child in flight gained a delta."""
        self._flights[slot.id].gain(delta)
        if self._counts(slot.id) and not self._is_blocked:
            self._advance()

    def end(self, slot: Slot, branch: Branch | None) -> None:
        """A child in flight became `branch`, or nothing."""
        if self._flights.pop(slot.id, None) is None:
            return
        self._num_flying[slot.parent.id] -= 1
        if branch is None:
            self._update(slot.parent.id)
            self._advance()
        else:
            self.add(branch)

    def add(self, branch: Branch) -> None:
        """A branch is in the tree."""
        parent = branch.parent
        assert parent is not None
        self._known[branch.id] = branch
        self._in_scope.setdefault(branch.id, self._in_scope[parent.id])
        self._has_children.add(parent.id)
        self._update(branch.id)
        self._update(parent.id)
        self._advance()

    def exclude(self, branches: Iterable[Branch]) -> None:
        """These will not be returned; their descendants still may."""
        for branch in branches:
            self._excluded.add(branch.id)
            self._update(branch.id)
        self._advance()

    def narrow(self, branches: Sequence[Branch], among: Iterable[int] | None = None) -> None:
        """Of the branches and slots `among` (all if None), only these and what is below remain."""
        allowed = frozenset(branch.id for branch in branches)
        for number in list(self._in_scope) if among is None else list(among):
            flight = self._flights.get(number)
            anchor = flight.parent if flight else self._known[number]
            if not anchor.descends_from(allowed):
                self._in_scope[number] = False
                self._update(number)
        self._advance()

    def conclude(self, branch: Branch) -> None:
        """This is the answer: emit what is left of it.

        Raises:
            ValueError: The answer does not begin with what was already decided.
        """
        if not self.allows(branch):
            raise ValueError(
                f"branch {branch.id} was chosen, but {len(self.text)} decided characters are not "
                "its beginning: the strategy promised or narrowed more than it kept"
            )
        rest = _tail_tokens(branch, self.num_tokens)
        self._commit(branch.text_from(len(self.text)), rest)

    def allows(self, branch: Branch) -> bool:
        """Whether returning the branch would keep every decided character."""
        return branch.text.startswith(self.text)

    def _update(self, number: int) -> None:
        branch = self._known.get(number)
        if branch is None:
            return
        self._tail = None
        if self._stands_for_itself(branch):
            self._static[number] = branch
        else:
            self._static.pop(number, None)

    def _stands_for_itself(self, branch: Branch) -> bool:
        if branch.id in self._excluded or not self._in_scope[branch.id]:
            return False
        if branch.finish is not None or branch.id not in self._promised:
            return True
        return not self._num_flying.get(branch.id) and branch.id not in self._has_children

    def _counts(self, number: int) -> bool:
        """Whether a child in flight is a candidate that its parent does not stand for."""
        return self._in_scope[number] and self._flights[number].parent.id not in self._static

    @property
    def _is_blocked(self) -> bool:
        return bool(self._static) and not self._static_text()

    def _static_text(self) -> str:
        """What the branches that stand for themselves agree on; there is at least one."""
        if self._tail is None:
            start = len(self.text)
            self._tail = _common_text(one.text_from(start) for one in self._static.values())
        return self._tail

    def _advance(self) -> None:
        flights = [one for number, one in self._flights.items() if self._counts(number)]
        standing = [self._static_text()] if self._static else []
        decided = _common_text(chain(standing, (flight.text for flight in flights)))
        if not decided:
            return
        tokens = [_tail_tokens(one, self.num_tokens) for one in self._static.values()]
        for flight in flights:
            tokens.append(flight.settle(self._decode, self.num_tokens))
        self._commit(decided, _common_tokens(tokens))

    def _commit(self, text: str, tokens: list[_Token]) -> None:
        if not text and not tokens:
            return
        self.text += text
        self.num_tokens += len(tokens)
        self._tail = None
        for flight in self._flights.values():
            flight.text = flight.text[len(text) :]
            if flight.tokens is not None:
                flight.tokens = flight.tokens[len(tokens) :]
        self._emit(_piece(text, tokens))


def _tokens(
    ids: TokenIds, logps: tuple[float, ...], tops: tuple[TopLogps, ...] | None
) -> list[_Token]:
    known = logps if len(logps) == len(ids) else (0.0,) * len(ids)
    listed = tops if tops is not None and len(tops) == len(ids) else (None,) * len(ids)
    return [_Token(*one) for one in zip(ids, known, listed, strict=True)]


def _tail_tokens(branch: Branch, start: int) -> list[_Token]:
    parts: list[list[_Token]] = []
    node = branch
    while node.parent is not None and node.num_tokens > start:
        step = node.step
        tokens = _tokens(step.token_ids, step.logps, step.top_logps)
        parts.append(tokens[max(0, start - node.parent.num_tokens) :])
        node = node.parent
    return [one for part in reversed(parts) for one in part]


def _common_tokens(tails: list[list[_Token]]) -> list[_Token]:
    """The first tail as far as all tails have the same ids."""
    if not tails:
        return []
    return tails[0][: _num_shared([[one.token for one in tail] for tail in tails])]


def _common_text(texts: Iterable[str]) -> str:
    """The common beginning; most often nothing, which the first two already tell."""
    common: str | None = None
    for text in texts:
        common = text if common is None else common[: _num_shared((common, text))]
        if not common:
            return ""
    return common or ""


def _num_shared(sequences: Sequence[Any]) -> int:
    """Length of the common beginning: that of the two farthest apart in sorted order."""
    low, high = min(sequences), max(sequences)
    pairs = enumerate(zip(low, high, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(low), len(high)))


def _piece(text: str, tokens: list[_Token]) -> Piece:
    tops = tuple(one.tops for one in tokens if one.tops is not None)
    return Piece(
        text=text,
        token_ids=tuple(one.token for one in tokens),
        logps=tuple(one.logp for one in tokens),
        top_logps=tops if tokens and len(tops) == len(tokens) else None,
    )
