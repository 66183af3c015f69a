"""Blobs that several write: nobody's growth is lost, and a store that is always ahead ends it."""

import asyncio

from stores.base import Conflict
from stores.memory import MemoryStore
from stores.merging import MAX_ATTEMPTS, merge_blob


async def write(store: MemoryStore, data: bytes, version: int) -> bool:
    return await merge_blob(
        store, "k", data, tenant="t", version=version, merged=lambda theirs: theirs + data
    )


async def held(store: MemoryStore) -> tuple[bytes, int]:
    blob = await store.get_blob("k", tenant="t")
    assert blob is not None
    return blob.data, blob.version


async def test_over_what_was_read_it_is_written_as_it_is() -> None:
    store = MemoryStore()
    assert await write(store, b"a", 0)
    _, version = await held(store)
    assert await write(store, b"ab", version)
    assert (await held(store))[0] == b"ab"


async def test_others_growth_is_kept() -> None:
    store = MemoryStore()
    assert all(await asyncio.gather(*(write(store, bytes([one]), 0) for one in b"abcd")))
    assert sorted((await held(store))[0]) == sorted(b"abcd")


async def test_what_expired_in_between_is_written_anew() -> None:
    store = MemoryStore()
    assert await write(store, b"a", 77)
    assert (await held(store))[0] == b"a"


class Ahead(MemoryStore):
    """Somebody else always writes first."""

    tries = 0

    async def put_blob(self, key: str, data: bytes, **more: object) -> int | Conflict:
        self.tries += 1
        await super().put_blob(key, b"theirs", tenant="t")
        return Conflict(self.tries)


async def test_it_gives_up_when_others_are_always_faster() -> None:
    store = Ahead()
    assert not await write(store, b"a", 0)
    assert store.tries == MAX_ATTEMPTS
    assert (await held(store))[0] == b"theirs"
