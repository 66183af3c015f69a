from __future__ import annotations

import pytest

from stores.errors import StoreConfigError
from stores.redis_store import RedisStore, _Breaker, open_store


async def test_open_store_reads_its_options_without_connecting() -> None:
    store = open_store("redis://user:secret@127.0.0.1:1/3?prefix=p:q&timeout_s=0.5")
    assert isinstance(store, RedisStore)
    assert store._name("value", "a:b", "{c}") == "p%3Aq:value:{a%3Ab}:%7Bc%7D"
    assert "secret" not in store._where
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "redis://user:secret@h:port",
        "redis://user:secret@h/db",
        "redis://user:secret@h/-1",
        "redis://user:secret@h?retries=3",
        "redis://user:secret@h?prefix=",
        "redis://user:secret@h?timeout_s=0",
        "redis://user:secret@h?timeout_s=soon",
        "http://h",
    ],
)
def test_open_store_refuses_what_it_does_not_know(url: str) -> None:
    with pytest.raises(StoreConfigError) as refused:
        open_store(url)
    assert "secret" not in str(refused.value)


async def test_a_unix_socket_is_a_path_not_a_database() -> None:
    store = open_store("unix:///run/redis.sock")
    assert store._redis.connection_pool.connection_kwargs["path"] == "/run/redis.sock"
    await store.aclose()


def test_breaker_lets_one_try_through_per_cooldown() -> None:
    now_s = [0.0]
    breaker = _Breaker(1.0, lambda: now_s[0])
    assert breaker.may_try()
    breaker.failed()
    assert not breaker.may_try()
    now_s[0] = 1.0
    assert [breaker.may_try() for _ in range(3)] == [True, False, False]
    now_s[0] = 1.5
    breaker.succeeded()
    assert [breaker.may_try() for _ in range(3)] == [True, True, True]
