"""A child fed by any backend ends where every engine's child ends."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import Continuation, Delta, Finish, Sampling
from engines.child import TokenChild
from engines.echo import open_engine
from engines.echo_model import BYTES, EOS
from engines.token_prefix import TokenPrefix

ECHO = open_engine("echo", "", {"context_tokens": 64, "margin": 0.5})
PROMPT = ECHO.encode("Say: ")


def prefix(answered: str = "", prompt: tuple[int, ...] = PROMPT) -> TokenPrefix:
    return TokenPrefix(BYTES, prompt + ECHO.encode(answered), len(prompt), tenant="t")


def fed(text: str, how: Sampling, *, answered: str = "", piece: int = 1) -> Continuation:
    """A child that gets `text`, `piece` tokens at a time, whatever it wants."""
    child = TokenChild(0, prefix(answered), how, ECHO.info)
    ids = ECHO.encode(text)
    for at in range(0, len(ids), piece):
        child.feed(ids[at : at + piece], [-0.5] * piece)
    return child.continuation()


def test_a_boundary_stays_and_the_step_is_open() -> None:
    done = fed("one\ntwo", Sampling(boundaries=("\n",)))
    assert (done.finish, done.matched, done.text) == (Finish.BOUNDARY, "\n", "one\n")
    assert done.finish.is_open
    assert done.overrun_ids == ()
    assert done.prefix.text == "one\n"


def test_a_stop_string_is_cut_off_and_its_tokens_are_overrun() -> None:
    done = fed("one END two", Sampling(stop=("END",)))
    assert (done.finish, done.matched, done.text) == (Finish.STOP, "END", "one ")
    assert ECHO.decode(done.overrun_ids) == "END"
    assert len(done.logps) == len(done.token_ids) == 4


def test_a_stop_string_may_begin_in_an_earlier_step() -> None:
    done = fed("ND more", Sampling(stop=("END",)), answered="one E")
    assert (done.finish, done.text, done.token_ids) == (Finish.STOP, "", ())
    assert done.prefix.text == "one E"


def test_a_boundary_is_not_found_twice() -> None:
    done = fed("\nnext", Sampling(boundaries=("\n\n",), max_step_tokens=3), answered="a\n\n")
    assert (done.finish, done.text) == (Finish.STEP_LENGTH, "\nne")


def test_a_stop_id_ends_and_is_no_part() -> None:
    child = TokenChild(0, prefix(), Sampling(), ECHO.info)
    assert child.feed((*ECHO.encode("hi"), EOS, 65), [-1.0] * 4) == 3
    done = child.continuation()
    assert (done.finish, done.matched, done.text) == (Finish.STOP_TOKEN, EOS, "hi")
    assert done.overrun_ids == (EOS,)
    assert len(done.prefix.token_ids) == len(PROMPT) + 2


def test_nothing_ends_the_answer_before_min_tokens() -> None:
    how = Sampling(stop=("b",), min_tokens=4, stop_token_ids=frozenset({ord("c")}))
    assert fed("bcbb", how).finish is Finish.CANCELLED
    assert fed("bcaxb", how).text == "bcax"
    assert fed("cb", how, answered="bc").finish is Finish.CANCELLED
    assert fed("cbb", how, answered="bc").text == "cb"


def test_lengths_count_from_where_they_should() -> None:
    how = Sampling(max_tokens=5, max_step_tokens=3)
    assert fed("abcdef", how).finish is Finish.STEP_LENGTH
    rest = fed("def", how, answered="abc")
    assert (rest.finish, rest.text) == (Finish.LENGTH, "de")
    full = TokenChild(0, prefix("abcde"), how, ECHO.info)
    assert full.is_over
    assert full.room == 0
    assert full.continuation().finish is Finish.LENGTH


def test_the_context_ends_a_child() -> None:
    near = prefix(prompt=(65,) * 62)
    child = TokenChild(0, near, Sampling(), ECHO.info)
    assert child.room == 2
    child.feed(ECHO.encode("abc"), [-1.0] * 3)
    assert (child.continuation().finish, child.continuation().text) == (Finish.CONTEXT, "ab")


def test_room_is_the_nearest_limit() -> None:
    how = Sampling(max_tokens=20, max_step_tokens=8)
    child = TokenChild(0, prefix("abc"), how, ECHO.info)
    assert child.room == 8
    child.feed(ECHO.encode("defgh"), [-1.0] * 5)
    assert (child.room, child.position) == (3, 8)
    assert child.token_ids == PROMPT + ECHO.encode("abcdefgh")


def test_a_cancelled_child_keeps_what_it_drew() -> None:
    child = TokenChild(2, prefix(), Sampling(), ECHO.info)
    child.feed(ECHO.encode("half"), [-1.0] * 4)
    child.cancel()
    done = child.continuation(cached_tokens=3, computed_tokens=9)
    assert (done.finish, done.text, done.index) == (Finish.CANCELLED, "half", 2)
    assert (done.cached_tokens, done.prefix.cached_tokens, done.computed_tokens) == (3, 3, 9)


def test_alternatives_are_kept_only_when_asked_for() -> None:
    tops = [((65, -0.5), (66, -1.0))] * 2
    for wanted in (None, 2):
        child = TokenChild(0, prefix(), replace(Sampling(), logprobs=wanted), ECHO.info)
        child.feed(ECHO.encode("ab"), [-1.0] * 2, tops if wanted else None)
        child.cancel()
        assert child.continuation().top_logps == (tuple(tops) if wanted else None)


@settings(deadline=None)  # the machine may be busy
@given(
    text=st.text("ab\né €", min_size=1, max_size=24),
    piece=st.integers(1, 9),
    stop=st.sampled_from([(), ("ab",), ("b\n", "é")]),
    boundaries=st.sampled_from([(), ("\n",), ("a\n", " €")]),
    limit=st.sampled_from([None, 5]),
)
def test_how_tokens_arrive_makes_no_difference(
    text: str, piece: int, stop: tuple[str, ...], boundaries: tuple[str, ...], limit: int | None
) -> None:
    how = Sampling(stop=stop, boundaries=boundaries, max_step_tokens=limit)
    one, many = fed(text, how), fed(text, how, piece=piece)
    assert replace(one, prefix=many.prefix) == many
    child = TokenChild(0, prefix(), how, ECHO.info)
    shown: list[Delta] = []
    ids = ECHO.encode(text)
    for at in range(0, len(ids), piece):
        child.feed(ids[at : at + piece], [-0.5] * piece)
        if (delta := child.delta()) is not None:
            shown.append(delta)
    assert many.text.startswith("".join(delta.text for delta in shown))
    tokens = tuple(token for delta in shown for token in delta.token_ids)
    assert many.token_ids[: len(tokens)] == tokens


@pytest.mark.parametrize("seed", range(12))
async def test_ends_where_the_echo_engine_ends(seed: int) -> None:
    """The same tokens, ended here and by an engine with its own loop."""
    start = await ECHO.open(PROMPT)
    free = Sampling(max_tokens=40, ban_ids=frozenset({EOS}))
    plain = await child_of_echo(start, free, seed)
    letters = ECHO.decode(tuple(t for t in plain.token_ids if t < 128)) or "x"
    how = replace(
        free,
        stop=(letters[seed % len(letters)],) if seed % 2 else (),
        boundaries=(letters[-1],) if seed % 3 else (),
        stop_token_ids=frozenset({plain.token_ids[20]}) if seed % 5 == 0 else frozenset(),
        max_step_tokens=17 if seed % 4 == 0 else None,
    )
    expected = await child_of_echo(start, how, seed)
    child = TokenChild(0, prefix(), how, ECHO.info)
    child.feed(plain.token_ids, plain.logps)
    done = child.continuation(computed_tokens=expected.computed_tokens)
    assert replace(done, prefix=expected.prefix) == expected


async def child_of_echo(start, how, seed):  # type: ignore[no-untyped-def]
    [done] = [
        item
        async for item in ECHO.sample(start, replace(how, deltas=False), seeds=(seed,))
        if isinstance(item, Continuation)
    ]
    return done
