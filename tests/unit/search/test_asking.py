"""Side questions."""

import asyncio

import pytest

from engines.base import Finish, Sampling
from search.base import Outcome
from search.errors import BudgetExhausted
from search.search import Search
from tests.search_harness import LETTERS, TryOut
from tests.toy_engine import MESSAGES, ToyEngine


async def test_ask_is_outside_the_tree(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        one, two = await asyncio.gather(search.ask(MESSAGES), search.ask(MESSAGES, Sampling()))
        assert {one.text, two.text} <= {"abc", "abd", "xyz"}
        assert len(search.tree.branches) == 1
        short = await search.ask(MESSAGES)
        assert (len(short.text), short.finish) == (2, Finish.LENGTH)
        assert search.is_over
        with pytest.raises(BudgetExhausted, match="generated_tokens"):
            await search.ask(MESSAGES)
        raise BudgetExhausted("generated_tokens", 10, 1)

    with pytest.raises(BudgetExhausted):
        await try_out(body, ToyEngine(LETTERS), generated_tokens=10, max_tokens=4)
