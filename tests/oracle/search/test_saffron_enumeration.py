"""Saffron against brute force: the whole tree of a toy engine, ranked without a search."""

import math
import zlib
from collections.abc import Callable

import pytest

from engines.base import Sampling
from tests.search_harness import result_of
from tests.toy_engine import END, Table, ToyEngine, ToyMultifurcation

Value = Callable[[str], float]
LENGTH = 5


def letters(text: str) -> dict[str, float]:
    """Uneven, different in every place, and always with a way to end."""
    spin = zlib.crc32(text.encode()) % 3
    chars = ["a", "b", "c"][spin:] + ["a", "b", "c"][:spin]
    return dict(zip([*chars, END], (0.4, 0.3, 0.2, 0.1), strict=True))


def value_of(salt: int) -> Value:
    return lambda text: zlib.crc32(f"{salt}{text}".encode()) % 9973 / 997 - 5


def nucleus_of(table: Table, text: str, top_p: float) -> list[str]:
    """By the definition: what has less than `top_p` strictly in front of it."""
    shares = table(text)
    return [
        one
        for one, share in shares.items()
        if math.fsum(other for other in shares.values() if other > share) < top_p - 1e-9
    ]


def allowed(table: Table, top_p: float) -> list[str]:
    """Every answer that nuclei lead to, at its end or at the limit, by brute force."""
    found, frontier = [], [""]
    for _ in range(LENGTH):
        longer = [text + one for text in frontier for one in nucleus_of(table, text, top_p)]
        found += [text for text in longer if text.endswith(END)]
        frontier = [text for text in longer if not text.endswith(END)]
    return found + frontier


def beam_of(table: Table, value: Value, top_p: float, width: int) -> list[str]:
    """The last beam, from its definition: the best of all that may follow, ends included."""
    beam = [""]
    for step in range(LENGTH):
        pool = []
        for text in beam:
            if text.endswith(END) and step:
                pool.append(text)
            else:
                pool += [text + one for one in nucleus_of(table, text, top_p)]
        beam = sorted(pool, key=lambda text: -value(text))[:width]
    return beam


@pytest.mark.parametrize("top_p", [0.35, 0.6, 0.95])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16])
async def test_the_last_beam_is_that_of_the_definition(top_p: float, width: int) -> None:
    for salt in range(5):
        value, engine = value_of(salt), ToyEngine(letters)
        judge = ToyMultifurcation(value)
        params = {"width": width, "top_p": top_p}
        result = await result_of(engine, "saffron", params, judge=judge, max_tokens=LENGTH)
        wanted = beam_of(letters, value, top_p, width)
        found = {
            one.content + (END if one.finish_reason == "stop" else "") for one in result.candidates
        }
        assert found == set(wanted)
        best = wanted[0]
        assert result.candidates[0].content == best.removesuffix(END) or best == END
        for one in result.candidates:
            whole = one.content + (END if one.finish_reason == "stop" else "")
            assert one.score == pytest.approx(value(whole), abs=1e-5)


@pytest.mark.parametrize("top_p", [0.35, 0.75])
async def test_a_beam_that_holds_everything_finds_the_best_of_all(top_p: float) -> None:
    every = allowed(letters, top_p)
    assert len(every) == len(set(every)) < 1000
    for salt in range(3):
        value = value_of(salt)
        judge = ToyMultifurcation(value)
        result = await result_of(
            ToyEngine(letters),
            "saffron",
            {"width": 1000, "top_p": top_p},
            judge=judge,
            sampling=Sampling(max_tokens=LENGTH),
        )
        best = max(every, key=value)
        assert result.answers[0].content == best.removesuffix(END)
        assert result.score == pytest.approx(value(best), abs=1e-5)
        assert len(result.candidates) == len(every)
