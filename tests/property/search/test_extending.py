"""Chosen tokens, step by step, spell what all of them decode to at once."""

from __future__ import annotations

from itertools import islice

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.base import Finish, Sampling, TokenIds
from engines.echo import EchoEngine, EchoOptions
from engines.echo_model import EOS
from search.branch import Branch
from search.extending import appended
from search.tree import SearchTree

PIECES = ["é", "€", "😀", "a", "b\n", "é€"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda parts: "".join(parts).encode())
BYTES = st.lists(st.sampled_from([*"é€😀a".encode(), 0xFF, 0xC3, 0xF0, EOS]), max_size=16)
TOKENS = st.one_of(TEXTS.map(tuple), BYTES.map(tuple))
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=20)


class CountingEcho(EchoEngine):
    """Remembers how much it was asked to decode at once."""

    def __init__(self) -> None:
        super().__init__("echo", EchoOptions())
        self.sizes: list[int] = []

    def decode(self, ids: TokenIds) -> str:
        self.sizes.append(len(ids))
        return super().decode(ids)


def steps_of(ids: TokenIds, sizes: list[int]) -> list[TokenIds]:
    rest, steps = iter(ids), []
    for size in [*sizes, *[1] * len(ids)]:
        steps.append(tuple(islice(rest, size)))
    return [step for step in steps if step]


def grown(engine: EchoEngine, ids: TokenIds, sizes: list[int], how: Sampling) -> Branch:
    """The branch that chosen tokens make, one step after another, as far as it goes."""
    tree = SearchTree()
    branch = tree.root
    for step in steps_of(ids, sizes):
        branch = tree.add(branch, appended(engine, branch, step, how, context_left=10**6))
        if branch.finish is not None:
            break
    return branch


@settings(max_examples=400, deadline=None)
@example(tuple("é€😀".encode()), [1])
@example((0xFF, 0xFF, 0x61), [1])
@given(TOKENS, SIZES)
def test_steps_spell_the_text(ids: TokenIds, sizes: list[int]) -> None:
    engine = EchoEngine("echo", EchoOptions())
    branch = grown(engine, ids, sizes, Sampling())
    end = ids.index(EOS) if EOS in ids else len(ids)
    assert branch.token_ids == ids[:end]
    whole = engine.decode(ids[:end])
    assert branch.text == (whole if branch.finish is Finish.STOP_TOKEN else whole.rstrip("\ufffd"))


@settings(max_examples=400, deadline=None)
@given(TEXTS.map(tuple), SIZES, st.integers(0, 8), st.text("é€😀ab\n", min_size=1, max_size=3))
def test_steps_stop_where_the_text_does(
    ids: TokenIds, sizes: list[int], min_tokens: int, stop: str
) -> None:
    engine = EchoEngine("echo", EchoOptions())
    branch = grown(engine, ids, sizes, Sampling(stop=(stop,), min_tokens=min_tokens))
    whole, early = engine.decode(ids), len(engine.decode(ids[:min_tokens]).rstrip("\ufffd"))
    at = whole.find(stop, max(0, early - len(stop) + 1))
    if at < 0:
        assert (branch.text, branch.finish) == (whole, None)
        return
    assert branch.finish is Finish.STOP
    # A stop that began in an earlier step leaves nothing of this one; nothing is taken back.
    assert branch.text.startswith(whole[:at])
    assert (whole[:at] + stop).startswith(branch.text)
    # A character that the stop began in may have left tokens in an earlier step, and no text.
    assert engine.decode(branch.token_ids).rstrip("\ufffd") == branch.text


@given(st.lists(st.sampled_from(PIECES), min_size=30, max_size=60))
def test_a_step_costs_what_it_adds(parts: list[str]) -> None:
    engine = CountingEcho()
    grown(engine, tuple("".join(parts).encode()), [1], Sampling(stop=("😀😀😀",)))
    assert max(engine.sizes) <= 4  # the bytes of one character
