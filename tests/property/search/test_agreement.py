"""What was streamed is never taken back, whatever grows, falls and finishes.

A random search on a random tree is played into the agreement; the model keeps the set of answers
that are still possible and checks every piece against all of them.
"""

import random

import pytest

from engines.base import Delta, Finish
from search.branch import Branch, Slot, Step
from search.streaming import Agreement, Piece
from search.tree import SearchTree


class Play:
    """Random moves of a search; every finished text begins with the same random beginning."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pieces: list[Piece] = []
        self.tree = SearchTree()
        self.agreement = Agreement(self.tree.root, self.decode, self.pieces.append)
        self.open: list[Branch] = [self.tree.root]
        self.done: list[Branch] = []
        self.excluded: set[int] = set()
        self.bias = self.rng.choice([0.0, 0.6, 0.95])

    @staticmethod
    def decode(ids: tuple[int, ...]) -> str:
        return "".join(map(chr, ids))

    def text(self, size: int) -> str:
        return "".join(
            "a" if self.rng.random() < self.bias else self.rng.choice("ab") for _ in range(size)
        )

    def grow(self) -> None:
        parent = self.open.pop(self.rng.randrange(len(self.open)))
        promised = self.rng.random() < 0.8
        if promised:
            self.agreement.promise(parent)
        else:
            self.open.append(parent)
        slots = [self.tree.submit(parent) for _ in range(self.rng.randint(1, 3))]
        for slot in slots:
            self.agreement.begin(slot)
        texts = {slot.id: self.text(self.rng.randint(1, 4)) for slot in slots}
        told = dict.fromkeys(texts, 0)
        while slots:
            slot = self.rng.choice(slots)
            whole, known = texts[slot.id], told[slot.id]
            if known < len(whole) and self.rng.random() < 0.8:
                char = whole[known]
                self.agreement.gain(slot, Delta(0, (ord(char),), char, (-1.0,)))
                told[slot.id] += 1
            else:
                slots.remove(slot)
                self.land(slot, whole)
            self.check()

    def land(self, slot: Slot, text: str) -> None:
        ends = self.rng.random() < 0.4
        ids = tuple(map(ord, text))
        step = Step(text, ids, (-1.0,) * len(ids), finish=Finish.STOP if ends else None)
        branch = self.tree.add(slot, step)
        self.agreement.end(slot, branch)
        (self.done if ends else self.open).append(branch)

    def prune(self) -> None:
        alive = [one for one in (*self.open, *self.done) if one.id]
        if len(alive) > 1:
            fallen = self.rng.choice(alive)
            self.agreement.exclude([fallen])
            self.excluded.add(fallen.id)
            for group in (self.open, self.done):
                if fallen in group:
                    group.remove(fallen)
        self.check()

    def narrow(self) -> None:
        alive = [one for one in (*self.open, *self.done) if one.id]
        if alive:
            kept = self.rng.sample(alive, self.rng.randint(1, len(alive)))
            self.agreement.narrow(kept)
            ids = [one.id for one in kept]
            self.open = [one for one in self.open if one.descends_from(ids)]
            self.done = [one for one in self.done if one.descends_from(ids)]
        self.check()

    def check(self) -> None:
        streamed = "".join(piece.text for piece in self.pieces)
        assert streamed == self.agreement.text
        tokens = [one for piece in self.pieces for one in piece.token_ids]
        assert streamed.startswith(self.decode(tuple(tokens)))
        for branch in (*self.open, *self.done):
            assert branch.text.startswith(streamed)


@pytest.mark.parametrize("seed", range(150))
def test_nothing_is_taken_back(seed: int) -> None:
    play = Play(seed)
    for _ in range(play.rng.randint(1, 12)):
        moves = [play.grow] * 4 * bool(play.open) + [play.prune, play.narrow]
        play.rng.choice(moves)()
    alive = [one for one in (*play.done, *play.open) if one.id]
    if not alive:
        return
    chosen = play.rng.choice(alive)
    play.agreement.conclude(chosen)
    assert "".join(piece.text for piece in play.pieces) == chosen.text
    ids = tuple(one for piece in play.pieces for one in piece.token_ids)
    assert ids == chosen.token_ids


def test_the_only_candidate_streams_at_once_and_two_stream_what_they_share() -> None:
    pieces: list[Piece] = []
    tree = SearchTree()
    agreement = Agreement(tree.root, Play.decode, pieces.append)
    one, two = tree.submit(tree.root), tree.submit(tree.root)
    agreement.promise(tree.root)
    agreement.begin(one)
    agreement.begin(two)
    agreement.gain(one, Delta(0, (97, 98), "ab", (-1.0, -2.0)))
    assert pieces == []
    agreement.gain(two, Delta(1, (97,), "a", (-1.0,)))
    assert pieces == [Piece("a", (97,), (-1.0,))]
    agreement.gain(two, Delta(1, (99,), "c", (-1.0,)))
    assert len(pieces) == 1
    agreement.end(two, None)
    assert pieces[1] == Piece("b", (98,), (-2.0,))
    agreement.gain(one, Delta(0, (99, 100), "c", (-1.0, -1.0)))
    # a token that runs ahead of its text waits: a stop string may yet take it
    assert pieces[2] == Piece("c", (99,), (-1.0,))
    agreement.gain(one, Delta(0, (), "d"))
    assert pieces[3] == Piece("d", (100,), (-1.0,))
