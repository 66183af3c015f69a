"""The routes of a run: live, afterwards, resumed, and from another replica."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
from fastapi import FastAPI

from search.tree import SearchTree, TreeEvent
from server.record import key_of
from server.services import Services
from tests.api.harness import (
    CHAT,
    Exchange,
    body,
    client_of,
    echo_settings,
    noisy_settings,
    serving,
)

SEARCH = {"strategy": "best_of_n", "params": {"width": 3}}


async def finished_run(client: httpx.AsyncClient) -> str:
    response = await client.post(CHAT, json=body(bough=SEARCH))
    run_id = response.json()["bough"]["run_id"]
    assert response.headers["x-bough-run-id"] == run_id
    return str(run_id)


def events_of(text: str) -> list[dict[str, Any]]:
    """The numbered events of a stream; the number in `id:` is the event's own."""
    found = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if ": " in line)
        if "id" in fields:
            found.append(json.loads(fields["data"]))
            assert int(fields["id"]) == found[-1]["number"]
    return found


async def test_tree_after_the_end(client: httpx.AsyncClient) -> None:
    run_id = await finished_run(client)
    tree = (await client.get(f"/v1/runs/{run_id}/tree")).json()
    assert (tree["object"], tree["run_id"], tree["state"]) == ("run.tree", run_id, "ended")
    assert len(tree["nodes"]) == 4
    assert [node["state"] for node in tree["nodes"] if node["id"] in tree["chosen"]] == ["chosen"]


async def test_events_after_the_end_give_the_same_tree(client: httpx.AsyncClient) -> None:
    run_id = await finished_run(client)
    tree = (await client.get(f"/v1/runs/{run_id}/tree")).json()
    response = await client.get(f"/v1/runs/{run_id}/events")
    assert response.text.endswith("event: end\ndata: {}\n\n")
    found = [TreeEvent.from_json(event) for event in events_of(response.text)]
    snapshot = SearchTree.replay(found)
    assert snapshot == {name: tree[name] for name in snapshot}


async def test_events_are_resumed(client: httpx.AsyncClient) -> None:
    url = f"/v1/runs/{await finished_run(client)}/events"
    every = events_of((await client.get(url)).text)
    last = every[-1]["number"]
    for after in (0, 3, last, last + 5):
        by_query = await client.get(url, params={"after": after})
        by_header = await client.get(url, headers={"Last-Event-ID": str(after)})
        assert events_of(by_query.text) == events_of(by_header.text) == every[after + 1 :]
        assert by_query.text.endswith("event: end\ndata: {}\n\n")
    odd = await client.get(url, headers={"Last-Event-ID": "x"})
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "Last-Event-ID")


async def paused(app: FastAPI) -> tuple[Exchange, str]:
    """A stream that has shown its first character and goes no further until somebody reads."""
    exchange = Exchange(app, CHAT, body(stream=True))
    start = await exchange.message()
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    await exchange.frame()
    return exchange, headers["x-bough-run-id"]


async def test_a_run_is_followed_while_it_goes() -> None:
    options = {"token_s": 0.001}
    model = {"engine": {"kind": "echo", "options": options}}
    async with serving(echo_settings(models={"echo": model}, reward_models={})) as app:
        exchange, run_id = await paused(app)
        while run_id not in app.state.services.runs:
            await exchange.frame()
        async with client_of(app) as client:
            tree = (await client.get(f"/v1/runs/{run_id}/tree")).json()
            assert tree["state"] == "running"
            live = events_of((await client.get(f"/v1/runs/{run_id}/events")).text)
            assert live[-1] == {"number": len(live) - 1, "kind": "ended", "stop_reason": "done"}
            await exchange.task
            stored = events_of((await client.get(f"/v1/runs/{run_id}/events")).text)
            assert stored == live


async def test_another_replica_follows_a_run_through_the_store() -> None:
    model = {"engine": {"kind": "echo", "options": {"token_s": 0.001}}}
    settings = echo_settings(models={"echo": model}, reward_models={})
    async with serving(settings) as one, serving(settings) as two:
        services: Services = two.state.services
        shared = one.state.services.store
        two.state.services = replace(services, store=shared)
        exchange, run_id = await paused(one)
        while not await shared.read_events(key_of(run_id, 0), tenant=""):
            await exchange.frame()
        async with client_of(two) as client:
            url = f"/v1/runs/{run_id}/events"
            following = [client.get(url), client.get(url, params={"after": 10**30})]
            whole, beyond = await asyncio.wait_for(asyncio.gather(*following), 20)
            found = events_of(whole.text)
            assert events_of(beyond.text) == []
            assert beyond.text.endswith("event: end\ndata: {}\n\n")
            await exchange.task
            await one.state.services.runs.drain()
            tree = (await client.get(f"/v1/runs/{run_id}/tree")).json()
        assert found[-1]["kind"] == "ended"
        snapshot = SearchTree.replay(map(TreeEvent.from_json, found))
        assert snapshot == {name: tree[name] for name in snapshot}


async def test_a_cancelled_run_is_kept_as_cancelled() -> None:
    async with serving(noisy_settings()) as app:
        exchange, run_id = await paused(app)
        while run_id not in app.state.services.runs:
            await exchange.frame()
        await exchange.leave()
        await app.state.services.runs.drain()
        async with client_of(app) as client:
            tree = (await client.get(f"/v1/runs/{run_id}/tree")).json()
        assert (tree["state"], tree["stop_reason"]) == ("ended", "cancelled")
