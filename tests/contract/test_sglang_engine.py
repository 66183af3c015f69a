"""What the SGLang engine sends, and what it makes of failures; on the protocol fake."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from engines.base import Constraint, Continuation, Delta, Finish, Health, Prefix, Sampling
from engines.errors import (
    EngineClosed,
    EngineOverloaded,
    ModelLoadError,
    PromptError,
    UpstreamRefused,
)
from engines.sglang_engine import SGLangEngine
from engines.sglang_http import open_engine
from tests.sglang_fake import FakeOptions, FakeServer, fake_model
from tests.sglang_fake_model import EOS

PROMPT = tuple(range(30, 110))
BAN_EOS = frozenset({EOS})
GREEDY = Sampling(temperature=0.0, max_tokens=12, ban_ids=BAN_EOS)

Start = Callable[..., FakeServer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model(tmp_path_factory.mktemp("fake_model"))


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Starts fakes that end with the test."""
    running: list[FakeServer] = []

    def started(port: int = 0, **options: Any) -> FakeServer:
        running.append(FakeServer(FakeOptions(model_path=str(model), **options), port))
        return running[-1]

    yield started
    for server in running:
        server.stop()


@asynccontextmanager
async def opened(*servers: FakeServer, **options: Any) -> AsyncIterator[SGLangEngine]:
    engine = open_engine("fake", ",".join(server.url for server in servers), options)
    for server in servers:
        server.fake.requests.clear()
    try:
        yield engine
    finally:
        await engine.aclose()


async def children(
    engine: SGLangEngine, prefix: Prefix, how: Sampling, n: int = 1
) -> tuple[list[Continuation], list[Delta]]:
    items = [item async for item in engine.sample(prefix, how, n=n, seeds=range(n))]
    done = sorted((i for i in items if isinstance(i, Continuation)), key=lambda one: one.index)
    return done, [item for item in items if isinstance(item, Delta)]


async def child(engine: SGLangEngine, prefix: Prefix, how: Sampling) -> Continuation:
    return (await children(engine, prefix, how))[0][0]


async def test_each_child_is_a_request_with_a_long_rid_of_its_own(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        await children(engine, await engine.open(PROMPT), GREEDY, 4)
    rids = [request["rid"] for request in server.fake.requests if request.get("stream")]
    assert len(rids) == len(set(rids)) == 4
    assert {len(rid) for rid in rids} == {32}
    assert all(r["input_ids"] == list(PROMPT) for r in server.fake.requests if r.get("stream"))
    assert server.fake.aborted == []


async def test_closing_aborts_what_runs_and_nothing_else(start: Start) -> None:
    server = start(token_s=0.002)
    async with opened(server) as engine:
        prefix = await engine.open(PROMPT)
        short = asyncio.ensure_future(child(engine, prefix, GREEDY))
        items = engine.sample(prefix, replace(GREEDY, max_tokens=90), n=3)
        seen = {(await anext(items)).index for _ in range(9)}
        await items.aclose()
        assert len((await short).token_ids) == 12
    assert seen == {0, 1, 2}
    long = [r["rid"] for r in server.fake.requests if r["sampling_params"]["max_new_tokens"] == 90]
    assert sorted(server.fake.aborted) == sorted(long)


async def test_a_step_that_ends_here_is_aborted_there(start: Start) -> None:
    """A boundary that began in the step before is found by us alone."""
    server = start(token_s=0.002)
    async with opened(server) as engine:
        prefix = await engine.open(PROMPT)
        plain = await child(engine, prefix, GREEDY)
        text = plain.text
        at = next(
            at
            for at in range(1, len(plain.token_ids) - 1)
            if "\ufffd" not in text[at - 1 : at + 1]
            and text[at - 1 : at + 1] not in text[:at]
            and engine.decode(plain.token_ids[:at]) == text[:at]
        )
        first = await child(engine, prefix, replace(GREEDY, max_step_tokens=at))
        how = replace(GREEDY, max_tokens=80, boundaries=(text[at - 1 : at + 1],))
        step = await child(engine, first.prefix, how)
    assert step.finish is Finish.BOUNDARY
    assert step.text == text[at : at + 1]
    drawn = [request["rid"] for request in server.fake.requests if request.get("stream")]
    assert server.fake.aborted == drawn[-1:]


@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        Sampling(max_tokens=6, temperature=0.6),
        Sampling(max_tokens=6, ban_ids=BAN_EOS),
        Sampling(max_tokens=6, logit_bias={40: 4.0}, frequency_penalty=0.5),
        Sampling(max_tokens=6, temperature=0.0),
        Sampling(max_tokens=6),
    ],
)
async def test_logps_are_the_models_whatever_was_drawn_from(
    start: Start, how: Sampling, is_raw: bool
) -> None:
    server = start(is_raw=is_raw)
    async with opened(server) as engine:
        prefix = await engine.open(PROMPT)
        for asked in (how, replace(how, logprobs=2)):
            done, deltas = await children(engine, prefix, asked)
            scored = await engine.score(prefix, done[0].token_ids)
            assert max(map(abs, map(float.__sub__, scored, done[0].logps))) < 1e-6
            given = [logp for delta in deltas for logp in delta.logps]
            if asked.logprobs:
                assert given == list(done[0].logps)
                assert [len(top) for top in done[0].top_logps or ()] == [2] * len(scored)
                assert [top for delta in deltas for top in delta.top_logps or ()] == list(
                    done[0].top_logps or ()
                )


async def test_a_new_prompt_is_computed_once_for_all_its_children(start: Start) -> None:
    async with opened(start()) as engine:
        prefix = await engine.open(PROMPT)
        done, _ = await children(engine, prefix, replace(GREEDY, ban_ids=frozenset()), 8)
        first = engine.stats().tokens_computed
        assert sorted(one.cached_tokens for one in done) == [0] + [79] * 7
        assert first == 80 + 7 + sum(len(one.token_ids + one.overrun_ids) for one in done)
        steps = [
            child(engine, one.prefix, Sampling(temperature=0.0, max_step_tokens=2)) for one in done
        ]
        await asyncio.gather(*steps)
        # the last token drawn has no KV yet: each child computes that one, and draws two
        assert engine.stats().tokens_computed - first <= 8 * (1 + 2)


async def test_tenants_have_caches_of_their_own(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        for tenant, cached in (("", 0), ("", 79), ("a", 0), ("a", 79), ("b", 0)):
            prefix = await engine.open(PROMPT, tenant=tenant)
            assert (await child(engine, prefix, GREEDY)).cached_tokens == cached
        keys = {request.get("extra_key") for request in server.fake.requests}
    assert len(keys) == 3


@pytest.mark.parametrize(("has_priority", "sent"), [(False, None), (True, 7)])
async def test_priorities_go_where_they_are_taken(
    start: Start, has_priority: bool, sent: int | None
) -> None:
    server = start(has_priority=has_priority)
    async with opened(server) as engine:
        await child(engine, await engine.open(PROMPT, priority=7), replace(GREEDY, ban_ids=BAN_EOS))
    (drawn,) = [request for request in server.fake.requests if request.get("stream")]
    assert drawn.get("priority") == sent


async def test_a_frequency_penalty_spans_steps(start: Start) -> None:
    async with opened(start()) as engine:
        root = prefix = await engine.open(PROMPT)
        few = {40: 20.0, 41: 19.0, 42: 18.0}  # so that tokens come again
        how = replace(GREEDY, frequency_penalty=2.0, logit_bias=few, max_tokens=16)
        whole = await child(engine, root, how)
        free = await child(engine, root, replace(how, frequency_penalty=0.0))
        assert len(set(whole.token_ids)) < len(whole.token_ids)
        assert whole.token_ids != free.token_ids
        ids: tuple[int, ...] = ()
        while len(ids) < 16:
            step = await child(engine, prefix, replace(how, max_step_tokens=3))
            ids += step.token_ids
            prefix = step.prefix
    assert step.finish is Finish.LENGTH
    assert ids == whole.token_ids


@dataclass(frozen=True)
class Cooling:
    """Hot for three tokens, then greedy."""

    def temperature(self, position: int) -> float:
        return 1.5 if position < 3 else 0.0

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 1.5), (3, 0.0)]


async def test_a_schedule_is_one_request_per_piece(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        prefix = await engine.open(PROMPT)
        how = replace(GREEDY, schedule=Cooling())
        done = await child(engine, prefix, how)
        assert done.finish is Finish.LENGTH
        drawn = server.fake.requests[:2]
        asked = [request["sampling_params"] for request in drawn]
        assert [one["temperature"] for one in asked] == [1.5, 0.0]
        assert [one["max_new_tokens"] for one in asked] == [3, 9]
        assert drawn[1]["input_ids"] == [*PROMPT, *done.token_ids[:3]]
        (longer,) = await engine.extend([(prefix, done.token_ids[:3])])
        assert (await child(engine, longer, GREEDY)).token_ids == done.token_ids[3:]


async def test_a_regex_is_sent_as_one(start: Start) -> None:
    async with opened(start()) as engine:
        how = Sampling(max_tokens=9, constraint=Constraint(regex="[0-9]{2}x"))
        done = await child(engine, await engine.open(PROMPT), how)
        assert done.text[:2].isdecimal()
        assert done.text[2:] == "x"
        with pytest.raises(PromptError, match="Failed to compile"):
            await child(
                engine, await engine.open(PROMPT), replace(how, constraint=Constraint(regex="("))
            )


async def test_tokens_that_would_end_the_worker_are_never_sent(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        for wrong in (-1, engine.info.vocab_size):
            with pytest.raises(PromptError):
                await engine.open((1, wrong))
            with pytest.raises(PromptError):
                await engine.extend([(await engine.open((1,)), (wrong,))])
        (row,) = await engine.next_logprobs([await engine.open((1,))], top_k=10**6)
        assert len(row.ids) == engine.info.vocab_size
        (row,) = await engine.next_logprobs([await engine.open((1,))], mass=1.0)
        assert math.isclose(math.fsum(map(math.exp, row.logps)), 1.0, abs_tol=1e-9)
        assert engine.health is Health.READY


async def test_an_abort_by_the_operator_is_a_cancelled_child(start: Start) -> None:
    server = start(token_s=0.002)
    async with opened(server) as engine:
        items = engine.sample(await engine.open(PROMPT), replace(GREEDY, max_tokens=90))
        await anext(items)
        async with httpx.AsyncClient(verify=False) as operator:
            await operator.post(f"{server.url}/abort_request", json={"abort_all": True})
        last = [item async for item in items][-1]
    assert isinstance(last, Continuation)
    assert last.finish is Finish.CANCELLED
    assert 0 < len(last.token_ids) < 90


def refusal(status: int, body: Any = None, **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse(body or {"error": {"message": "no"}}, status, headers)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_worker_is_asked_again(start: Start, status: int) -> None:
    server = start()
    async with opened(server) as engine:
        server.fake.refusals += [refusal(status)] * 2
        assert len((await child(engine, await engine.open(PROMPT), GREEDY)).token_ids) == 12


async def test_a_busy_stream_is_asked_again(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        server.fake.broken.append({"error": {"message": "queue is full", "code": 503}})
        assert len((await child(engine, await engine.open(PROMPT), GREEDY)).token_ids) == 12


async def test_asking_again_has_an_end(start: Start) -> None:
    server = start()
    async with opened(server, max_retries=1) as engine:
        server.fake.refusals += [refusal(429, **{"Retry-After": "0"})] * 2
        with pytest.raises(EngineOverloaded) as refused:
            await child(engine, await engine.open(PROMPT), GREEDY)
        assert refused.value.retry_after_s >= 1
        assert engine.health is Health.READY


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "said so"}}, PromptError),
        (400, {"error": "said so"}, PromptError),
        (400, {"object": "error", "message": "said so"}, PromptError),
        (401, {"error": "said so"}, UpstreamRefused),
        (500, {"error": {"message": "said so"}}, EngineClosed),
    ],
)
async def test_refusals_quote_the_worker(
    start: Start, status: int, body: Any, kind: type[Exception]
) -> None:
    server = start()
    async with opened(server) as engine:
        server.fake.refusals.append(refusal(status, body))
        with pytest.raises(kind, match="said so"):
            await child(engine, await engine.open(PROMPT), GREEDY)
        assert len((await child(engine, await engine.open(PROMPT), GREEDY)).token_ids) == 12


async def test_a_late_refusal_is_one_too(start: Start) -> None:
    server = start()
    async with opened(server) as engine:
        server.fake.broken.append({"error": {"message": "said so", "code": 400}})
        with pytest.raises(PromptError, match="said so"):
            await child(engine, await engine.open(PROMPT), GREEDY)


async def test_silence_has_a_limit(start: Start) -> None:
    server = start()
    async with opened(server, idle_timeout_s=0.3, health_s=60) as engine:
        server.fake.may_go_on.clear()
        with pytest.raises(EngineClosed, match="ReadTimeout"):
            await child(engine, await engine.open(PROMPT), GREEDY)
        assert engine.health is Health.AWAY
    assert len(server.fake.aborted) == 1


async def test_a_worker_that_comes_back_is_used_again(start: Start) -> None:
    first = start(token_s=0.002)
    async with opened(first, health_s=60) as engine:
        prefix = await engine.open(PROMPT)
        items = engine.sample(prefix, replace(GREEDY, max_tokens=90))
        await anext(items)
        first.kill()
        with pytest.raises(EngineClosed):
            [item async for item in items]
        assert engine.health is Health.AWAY
        with pytest.raises(EngineClosed, match="no worker of 'fake' answers"):
            await child(engine, prefix, GREEDY)
        start(port=first.port)
        assert len((await child(engine, prefix, GREEDY)).token_ids) == 12
        assert engine.health is Health.READY
        assert engine.stats().running == 0


async def test_a_worker_may_come_back_otherwise(start: Start) -> None:
    """Streaming and logps are as it is now, not as it was; lost seeds are not made up."""
    first = start(is_raw=True, is_delta=True)
    async with opened(first, health_s=60) as engine:
        prefix = await engine.open(PROMPT)
        how = Sampling(temperature=0.5, max_tokens=8)
        await child(engine, prefix, how)
        first.kill()
        with pytest.raises(EngineClosed):
            await child(engine, prefix, how)
        start(port=first.port)
        done = await child(engine, prefix, how)
        scored = await engine.score(prefix, done.token_ids)
        assert max(map(abs, map(float.__sub__, scored, done.logps))) < 1e-6
    seeded = start(is_seeded=True)
    async with opened(seeded, health_s=60) as engine:
        seeded.kill()
        with pytest.raises(EngineClosed):
            await child(engine, await engine.open(PROMPT), how)
        start(port=seeded.port)
        with pytest.raises(EngineClosed, match="no worker"):
            await child(engine, await engine.open(PROMPT), how)


async def test_a_worker_that_comes_back_with_another_model_is_left_out(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    async with opened(first, health_s=60) as engine:
        first.kill()
        with pytest.raises(EngineClosed):
            await child(engine, await engine.open(PROMPT), GREEDY)
        other = FakeServer(FakeOptions(model_path=str(fake_model(tmp_path))), first.port)
        try:
            with pytest.raises(EngineClosed, match="no worker"):
                await child(engine, await engine.open(PROMPT), GREEDY)
            sent = [one["sampling_params"]["max_new_tokens"] for one in other.fake.requests]
            assert set(sent) == {1}  # it was asked what it is, and nothing else
        finally:
            other.stop()
    assert f"is back with {tmp_path}" in caplog.text


async def test_workers_of_two_models_are_told_of(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = start(), FakeServer(FakeOptions(model_path=str(fake_model(tmp_path))))
    try:
        async with opened(one, other):
            assert str(tmp_path) in caplog.text
    finally:
        other.stop()


async def test_a_bug_of_ours_reaches_the_reader(start: Start) -> None:
    async with opened(start()) as engine:
        items = engine.sample(await engine.open(PROMPT), GREEDY, n=2)
        engine._terms.pool.generate = None  # type: ignore[assignment, method-assign]
        with pytest.raises(TypeError):
            [item async for item in items]


async def test_a_dead_worker_is_left_out(start: Start) -> None:
    one, other = start(), start()
    async with opened(one, other, health_s=60) as engine:
        prefix = await engine.open(PROMPT)
        await child(engine, prefix, GREEDY)
        held, free = (one, other) if one.fake.requests else (other, one)
        held.kill()
        for _ in range(3):
            assert len((await child(engine, prefix, GREEDY)).token_ids) == 12
        assert len(free.fake.requests) >= 3
        assert engine.health is Health.READY


async def test_health_is_seen_without_a_request(start: Start) -> None:
    server = start()
    async with opened(server, health_s=0.01) as engine:
        server.kill()
        async with asyncio.timeout(20):
            while engine.health is Health.READY:  # noqa: ASYNC110 - nobody says when it changes
                await asyncio.sleep(0)
        start(port=server.port)
        async with asyncio.timeout(20):
            while engine.health is not Health.READY:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_trees_stay_with_their_worker(start: Start) -> None:
    servers = [start(), start()]
    async with opened(*servers) as engine:
        for first in (30, 60):
            prefix = await engine.open(tuple(range(first, first + 64)))
            done, _ = await children(engine, prefix, replace(GREEDY, max_step_tokens=8), 3)
            for one in done:
                await children(engine, one.prefix, replace(GREEDY, max_step_tokens=2), 2)
    roots = [{request["input_ids"][0] for request in server.fake.requests} for server in servers]
    assert sorted(map(sorted, roots)) == [[30], [60]]


def test_what_cannot_be_opened_says_why(start: Start, model: Path) -> None:
    judge = start(is_embedding=True)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("", {}, "no worker is named"),
        ("ftp://host", {}, "http"),
        ("http://127.0.0.1:9", {}, "start it first"),
        (judge.url, {}, "--is-embedding"),
        (start().url, {"tokenizer": "/nowhere"}, "option tokenizer"),
        (judge.url, {"idle": 3}, "'idle'"),
        (judge.url, {"max_retries": -1}, "'max_retries'"),
    ]
    for address, options, word in cases:
        with pytest.raises(ModelLoadError, match=word):
            open_engine("fake", address, options)
    assert judge.fake.requests == []
