"""bough_client against a real bough server on the echo engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from bough_client import AsyncBough, Bough, BoughReply

from server.serve import BackgroundServer
from tests.api.harness import echo_settings

MESSAGES: Any = [{"role": "user", "content": "2+2\nis 4\nso 4"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with BackgroundServer(echo_settings(log_level="error")) as base:
        yield f"{base}/v1"


@pytest.fixture
def client(url: str) -> Iterator[Bough]:
    with Bough(url, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncBough]:
    async with AsyncBough(url, max_retries=0) as opened:
        yield opened


def test_every_strategy_answers_as_asked(client: Bough) -> None:
    names = [strategy.name for strategy in client.strategies()]
    assert {"single", "best_of_n"} <= set(names)
    for name in ("single", "best_of_n"):
        answer = client.complete(
            model="echo", messages=MESSAGES, seed=7, bough={"strategy": name, "cache": False}
        )
        assert answer.text
        assert (answer.bough.strategy, answer.bough.resolved) == (name, name)
        assert (answer.bough.stop_reason, answer.bough.seed) == ("done", 7)
        assert answer.bough.spent.generated_tokens > 0


def test_streamed_text_equals_the_whole_answer(client: Bough) -> None:
    options: Any = {"strategy": "best_of_n", "params": {"width": 3}}
    whole = client.complete(model="echo", messages=MESSAGES, seed=7, bough=options)
    chunks = list(client.stream(model="echo", messages=MESSAGES, seed=7, bough=options))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    accounts = [chunk.bough for chunk in chunks if isinstance(chunk.bough, BoughReply)]
    assert [account.resolved for account in accounts] == ["best_of_n"]


def test_the_tree_is_what_its_events_tell(client: Bough) -> None:
    answer = client.complete(
        model="echo", messages=MESSAGES, seed=7, bough={"strategy": "best_of_n"}
    )
    events = list(client.run_events(answer.bough.run_id))
    assert [event.number for event in events] == list(range(len(events)))
    assert events[-1].kind == "ended"
    grown = {event.data["branch"] for event in events if event.kind == "grown"}
    tree = client.run_tree(answer.bough.run_id)
    assert {node.id for node in tree.nodes} == grown
    assert (tree.stop_reason, tree.run_id) == ("done", answer.bough.run_id)
    later = list(client.run_events(answer.bough.run_id, after=events[0].number))
    assert later == events[1:]


async def test_the_async_client_does_the_same(async_client: AsyncBough) -> None:
    answer = await async_client.complete(
        model="echo", messages=MESSAGES, bough={"strategy": "single"}
    )
    chunks = [chunk async for chunk in async_client.stream(model="echo:single", messages=MESSAGES)]
    assert "".join(chunk.text for chunk in chunks) == answer.text
    run_id = answer.bough.run_id
    events = [event async for event in async_client.run_events(run_id)]
    tree = await async_client.run_tree(run_id)
    assert len(tree.nodes) == sum(event.kind == "grown" for event in events)
    assert "single" in [strategy.name for strategy in await async_client.strategies()]


def test_refusals_name_the_field(client: Bough) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.complete(model="echo", messages=MESSAGES, bough={"strategy": "beem"})
    assert (refused.value.code, refused.value.param) == ("strategy_not_found", "bough.strategy")
    with pytest.raises(openai.NotFoundError):
        client.run_tree("run_unknown")
    with pytest.raises(openai.NotFoundError):
        list(client.run_events("run_unknown"))
