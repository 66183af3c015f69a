"""Chosen tokens, and characters that straddle steps."""

import asyncio

import numpy as np
import pytest

from engines.base import Finish, Sampling
from search.base import Outcome
from search.errors import BrokenContract
from search.search import Search
from tests.search_harness import LETTERS, TryOut, first, pieces_of
from tests.toy_engine import END, ToyEngine


async def test_extend_appends_chosen_tokens(try_out: TryOut) -> None:
    engine = ToyEngine(LETTERS)
    (eos,) = engine.info.eos_ids

    async def body(search: Search) -> Outcome:
        a, b = await search.extend([(search.root, (97,)), (search.root, (97, 98))])
        assert (a.text, b.text, b.path) == ("a", "ab", (1,))
        assert b.logps == pytest.approx((np.log(0.75), 0.0))
        (c,) = await search.extend([(a, (98, 99, eos, 120))], logps=[(-1.0, -2.0, -3.0, -4.0)])
        assert (c.text, c.finish, c.logps[1:]) == ("abc", Finish.STOP_TOKEN, (-1.0, -2.0))
        (tokens,) = await search.next_tokens([b], mass=0.9)
        assert tokens.ids == (99, 100)
        return first(search, [c, b])

    result = await try_out(body, engine)
    assert result.spent.generated_tokens == 7
    assert [one.finish_reason for one in result.candidates] == ["stop", "length"]


@pytest.mark.parametrize(
    ("sampling", "ids", "text", "finish"),
    [
        (Sampling(max_tokens=3), "bcde", "abc", Finish.LENGTH),
        (Sampling(max_tokens=3), "bc", "abc", Finish.LENGTH),
        (Sampling(max_tokens=9), "bc", "abc", None),
        (Sampling(stop=("cd",)), "bcde", "ab", Finish.STOP),
        (Sampling(stop=("ab",)), "bc", "a", Finish.STOP),
        (Sampling(stop=("zz", "c")), "bcde", "ab", Finish.STOP),
        (Sampling(stop_token_ids=frozenset({99})), "bcde", "ab", Finish.STOP_TOKEN),
        (Sampling(), "b" * 50, "a" + "b" * 15, Finish.CONTEXT),
    ],
)
async def test_extend_ends_as_sampling_does(
    try_out: TryOut, sampling: Sampling, ids: str, text: str, finish: Finish | None
) -> None:
    engine = ToyEngine(LETTERS, context_tokens=20)

    async def body(search: Search) -> Outcome:
        assert search.tree.prompt_tokens == 4
        (start,) = await search.extend([(search.root, (97,))])
        (end,) = await search.extend([(start, engine.encode(ids))])
        assert (end.text, end.finish) == (text, finish)
        assert engine.decode(end.token_ids) == text
        return first(search, [end])

    await try_out(body, engine, sampling=sampling)


async def test_extend_within_the_budget(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        pairs = [(search.root, (97, 98))] * 3
        children = await search.extend(pairs)
        assert len(children) == 2
        return first(search, children)

    result = await try_out(body, ToyEngine(LETTERS), generated_tokens=5)
    assert (result.spent.generated_tokens, result.stop_reason) == (4, "budget")


async def test_characters_may_straddle_steps(try_out: TryOut) -> None:
    # every character is two bytes; steps of three bytes end inside every other one
    def table(text: str) -> dict[str, float]:
        if text.endswith("�"):
            return {"\xa9": 1.0}
        return {"\xc3": 1.0} if len(text) < 6 else {END: 1.0}

    engine = ToyEngine(table)

    async def body(search: Search) -> Outcome:
        branch, texts = search.root, []
        while branch.finish is None:
            how = search.stepwise(3)
            (branch,) = await search.expand(branch, 1, how, last=True)
            texts.append(branch.text)
        assert texts == ["é", "ééé", "éééé", "éééééé", "éééééé"]
        (again,) = await search.extend([(search.root, (0xC3,))])
        assert (again.text, again.step.is_partial) == ("", True)
        (whole,) = await search.extend([(again, (0xA9,))])
        assert whole.text == "é"
        (stopped,) = await search.expand(again, 1, Sampling(stop=("éé",)))
        assert (stopped.text, stopped.finish) == ("", Finish.STOP)
        return first(search, [branch])

    engine_run = try_out.run(body, engine)
    with pytest.raises(BrokenContract):  # the root was promised: only for the second half
        await engine_run.result()


async def test_partial_characters_extend_and_stop(try_out: TryOut) -> None:
    def table(text: str) -> dict[str, float]:
        return {"\xa9": 1.0} if text.endswith("�") else {"\xc3": 1.0}

    async def body(search: Search) -> Outcome:
        (part,) = await search.extend([(search.root, (0x61, 0xC3))])
        assert (part.text, part.step.is_partial) == ("a", True)
        (whole,) = await search.extend([(part, (0xA9,))])
        assert whole.text == "aé"
        (stopped,) = await search.expand(part, 1, Sampling(stop=("ééé",), max_tokens=20))
        assert (stopped.text, stopped.finish) == ("a", Finish.STOP)  # the first é began before
        return first(search, [stopped])

    await try_out(body, ToyEngine(table))


async def test_a_cut_inside_a_straddling_character(try_out: TryOut) -> None:
    def table(text: str) -> dict[str, float]:
        return {"\xa9": 1.0} if text.endswith("�") else {"\xc3": 1.0}

    engine = ToyEngine(table)

    async def body(search: Search) -> Outcome:
        (part,) = await search.expand(search.root, 1, search.stepwise(3), last=True)
        items = iter(range(100))

        def stick() -> None:
            if next(items) == 4:
                engine.gate = asyncio.Event()

        engine.on_item = stick
        (cut,) = await search.expand(part, 1, last=True)
        assert cut.finish is Finish.CANCELLED
        return first(search, [cut])

    pieces, result = await pieces_of(try_out.run(body, engine, wall_ms=50))
    assert "".join(piece.text for piece in pieces) == result.answers[0].content
    assert result.answers[0].content.startswith("é")
