"""Replicas learn each other's drafts through a store, and no tenant another's."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import Continuation, Sampling
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import Taught
from engines.embedded.engine import EmbeddedEngine, open_engine
from engines.errors import EngineClosed, EngineOverloaded, InvariantError
from server.draft_sharing import DraftSharing
from server.metrics import Metrics
from server.settings import DraftSettings
from stores.base import Conflict
from stores.errors import StoreUnavailable
from stores.memory import MemoryStore
from tests.contract.test_embedded_drafting import Eager, Knows
from tests.contract.tiny_llama import write_tiny_llama

HOW = Sampling(max_tokens=48, min_tokens=48, temperature=0.0, drafter="adaptive")
PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), context_tokens=256)


@pytest.fixture
async def replicas(directory: Path) -> AsyncIterator[list[EmbeddedEngine]]:
    engines = [open_engine("tiny", str(directory), {"kv_tokens": 2048}) for _ in range(2)]
    for engine in engines:
        engine._runtime.worker.drafting.budget = Eager(12)
    yield engines
    for engine in engines:
        await engine.aclose()


async def accepted(engine: EmbeddedEngine, tenant: str) -> int:
    """How much of the answer was drafted, in a run that has seen nothing of it."""
    prefix = await engine.open(engine.encode(PROMPT), tenant=tenant)
    [done] = [c async for c in engine.sample(prefix, HOW) if isinstance(c, Continuation)]
    prefix.release()
    done.prefix.release()
    return done.accepted


def sharings(
    engines: Sequence[EmbeddedEngine], store: MemoryStore
) -> tuple[list[DraftSharing], Metrics]:
    metrics = Metrics()
    made = [DraftSharing({"m": one}, store, DraftSettings(), metrics) for one in engines]
    return made, metrics


def key(engines: Sequence[EmbeddedEngine], drafter: str = "adaptive") -> str:
    return f"drafts/m/{engines[0].info.tokenizer_hash}/{drafter}"


async def test_a_replica_drafts_what_another_learnt(replicas: list[EmbeddedEngine]) -> None:
    first, second = replicas
    store = MemoryStore()
    (mine, theirs), _ = sharings(replicas, store)
    fresh = await accepted(first, "a")
    learnt = await accepted(first, "a")
    assert learnt > fresh
    assert first.taught() == [Taught("adaptive", "a")]
    await mine.share()
    assert first.taught() == []
    # The second replica asks for the lessons of those who were here: one short answer.
    prefix = await second.open(second.encode("a dog"), tenant="a")
    short = Sampling(max_tokens=4, drafter="adaptive")
    async for item in second.sample(prefix, short, seeds=[1]):
        if isinstance(item, Continuation):
            item.prefix.release()
    prefix.release()
    await theirs.share()
    assert await accepted(second, "a") > fresh


async def test_no_tenant_learns_from_another(replicas: list[EmbeddedEngine]) -> None:
    first, second = replicas
    (mine, theirs), _ = sharings(replicas, MemoryStore())
    fresh = await accepted(first, "a")
    for _ in range(3):
        await accepted(first, "a")
    await mine.share()
    assert await accepted(second, "b") == fresh
    await theirs.share()
    assert await accepted(first, "b") == fresh


async def test_what_others_wrote_meanwhile_is_not_lost(replicas: list[EmbeddedEngine]) -> None:
    store = MemoryStore()
    (mine, theirs), _ = sharings(replicas, store)
    for engine in replicas:
        await accepted(engine, "a")
    await mine.share()
    blob = await store.get_blob(key(replicas), tenant="a")
    await theirs.share()
    later = await store.get_blob(key(replicas), tenant="a")
    assert blob is not None
    assert later is not None
    assert later.version > blob.version
    assert len(later.data) >= len(blob.data) * 0.9


async def test_who_comes_second_tries_again(
    replicas: list[EmbeddedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    (mine, _), _ = sharings(replicas, store)
    await accepted(replicas[0], "a")
    put = store.put_blob

    async def overtaken(name: str, data: bytes, **more: Any) -> int | Conflict:
        await put(name, b"", tenant="a")
        return await put(name, data, **more)

    monkeypatch.setattr(store, "put_blob", overtaken)
    await mine.share()
    blob = await store.get_blob(key(replicas), tenant="a")
    assert blob is not None
    assert not blob.data
    monkeypatch.undo()
    await mine.share()  # nothing was taught since
    blob = await store.get_blob(key(replicas), tenant="a")
    assert blob is not None
    assert blob.data


async def test_a_store_that_is_gone_costs_the_lessons_only(
    replicas: list[EmbeddedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    (mine, _), metrics = sharings(replicas, store)

    async def gone(*given: object, **more: object) -> None:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(store, "get_blob", gone)
    await accepted(replicas[0], "a")
    await mine.share()
    assert replicas[0].taught() == [Taught("adaptive", "a")]
    sample = metrics.registry.get_sample_value
    assert sample("bough_store_errors_total", {"what": "drafts"}) == 1


@pytest.mark.parametrize(
    "old",
    [
        b"of another age",
        zlib.compress(b'{"kind": "adaptive/1", "rows": [[[1, 2], [3]]], "trust": []}'),
    ],
    ids=["no snapshot", "rows of another form"],
)
async def test_lessons_that_cannot_be_read_are_replaced(
    replicas: list[EmbeddedEngine], old: bytes
) -> None:
    store = MemoryStore()
    (mine, _), _ = sharings(replicas, store)
    await store.put_blob(key(replicas), old, tenant="a")
    await accepted(replicas[0], "a")
    await mine.share()
    blob = await store.get_blob(key(replicas), tenant="a")
    assert blob is not None
    assert blob.data != old


async def test_a_drafter_that_breaks_costs_its_own_lessons(
    replicas: list[EmbeddedEngine], caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Knows):
        def snapshot(self, *, tenant: str) -> bytes:
            raise AttributeError("no rows any more")

    store = MemoryStore()
    (mine, _), _ = sharings(replicas, store)
    engine = replicas[0]
    engine._drafters._made["adaptive"] = Breaks([], (), 300, random.Random(0))
    await accepted(engine, "a")
    engine._runtime.worker.drafting.taught.add(Taught("ngram", "a"))
    await mine.share()
    assert "by 'adaptive' are not shared" in caplog.text
    assert await store.get_blob(key(replicas, "ngram"), tenant="a") is not None


async def test_an_engine_that_is_never_idle_holds_up_no_other(
    replicas: list[EmbeddedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    never, twice = asyncio.Event(), asyncio.Event()
    busy, free = replicas
    taught = Taught("adaptive", "a")
    snapshots = 0

    async def waits(of: Taught) -> bytes:
        await never.wait()
        return b""

    async def counts(of: Taught) -> bytes:
        nonlocal snapshots
        snapshots += 1
        if snapshots == 2:
            twice.set()
        return b""

    for engine, snapshot in ((busy, waits), (free, counts)):
        monkeypatch.setattr(engine, "taught", lambda: [taught])
        monkeypatch.setattr(engine, "draft_snapshot", snapshot)
    engines = {"busy": busy, "free": free}
    settings = DraftSettings(share_s=0.001)
    task = asyncio.create_task(DraftSharing(engines, MemoryStore(), settings, Metrics()).run())
    await asyncio.wait_for(twice.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_model_of_another_tokenizer_shares_nothing(
    replicas: list[EmbeddedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    (mine, theirs), _ = sharings(replicas, store)
    other = replicas[1]
    monkeypatch.setattr(other, "info", replace(other.info, tokenizer_hash="of another tokenizer"))
    for engine in replicas:
        await accepted(engine, "a")
    await mine.share()
    blob = await store.get_blob(key(replicas), tenant="a")
    await theirs.share()
    assert await store.get_blob(key(replicas), tenant="a") == blob
    assert await store.get_blob(key([other]), tenant="a") is not None


class Foreign:
    """An engine of a plugin, which raises where it is told to; it learnt one thing."""

    def __init__(self, fault: Exception, *, at: str) -> None:
        self._fault = fault
        self._at = at

    def _pass(self, at: str) -> None:
        if at == self._at:
            raise self._fault

    @property
    def info(self) -> SimpleNamespace:
        self._pass("info")
        return SimpleNamespace(tokenizer_hash="h")

    def taught(self) -> list[Taught]:
        self._pass("taught")
        return [Taught("ngram", "a")]

    async def draft_snapshot(self, of: Taught) -> bytes:
        return b"new"

    async def merge_drafts(self, of: Taught, data: bytes) -> None:
        self._pass("merge")


@pytest.mark.parametrize("at", ["taught", "info"])
async def test_an_engine_that_breaks_ends_sharing_for_no_other(
    at: str, caplog: pytest.LogCaptureFixture
) -> None:
    engines: Any = {
        "broken": Foreign(RuntimeError("out of order"), at=at),
        "closed": Foreign(EngineClosed("gone"), at=at),
        "sound": Foreign(RuntimeError(), at=""),
    }
    store = MemoryStore()
    await DraftSharing(engines, store, DraftSettings(), Metrics()).share()
    blob = await store.get_blob("drafts/sound/h/ngram", tenant="a")
    assert blob is not None
    assert blob.data == b"new"
    assert [record.getMessage() for record in caplog.records] == ["drafts of broken are not shared"]
    assert "out of order" in caplog.text


@pytest.mark.parametrize(
    ("fault", "left", "said"),
    [
        (DrafterError("of another form"), b"new", "cannot be read"),
        (LookupError("no rows"), b"new", "cannot be read"),
        (InvariantError("pages disagree"), b"old", "are not shared"),
        (EngineOverloaded("m", 1), b"old", "are not shared"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
async def test_only_lessons_that_cannot_be_read_are_replaced(
    fault: Exception, left: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that fails while it reads says nothing of what is stored."""
    store = MemoryStore()
    await store.put_blob("drafts/m/h/ngram", b"old", tenant="a")
    engines: Any = {"m": Foreign(fault, at="merge")}
    await DraftSharing(engines, store, DraftSettings(), Metrics()).share()
    blob = await store.get_blob("drafts/m/h/ngram", tenant="a")
    assert blob is not None
    assert blob.data == left
    assert said in caplog.text
