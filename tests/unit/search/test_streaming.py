"""What narrowing and promises let a stream send."""

import pytest

from search.base import Outcome
from search.errors import BrokenContract
from search.search import Search
from tests.search_harness import TryOut, first, pieces_of
from tests.toy_engine import ToyEngine, one_of


async def test_narrowing_streams_what_is_left(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\nb\n": 0.5, "x\ny\n": 0.5}))
    seen: list[str] = []

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 6, search.stepwise(), last=True)
        kept = [one for one in level if one.text == "x\n"]
        search.may_return(kept[:1])
        seen.append(search._bench.agreement.text)
        (end,) = await search.expand(kept[0], 1, last=True)
        seen.append(search._bench.agreement.text)
        return first(search, [end])

    pieces, result = await pieces_of(try_out.run(body, engine))
    assert seen == ["x\n", "x\ny\n"]
    assert [piece.text for piece in pieces] == ["x\n", "y", "\n"]
    assert result.answers[0].content == "x\ny\n"


async def test_breaking_a_promise_is_caught(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"ab": 0.5, "xy": 0.5}))

    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 6)
        one = next(child for child in children if child.text == "ab")
        other = next(child for child in children if child.text == "xy")
        search.may_return([one])
        return first(search, [other])

    with pytest.raises(BrokenContract, match="decided characters"):
        await try_out(body, engine)
