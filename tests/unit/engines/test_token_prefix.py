"""Claims that hold tokens and nothing else."""

import pytest

from engines.echo import open_engine
from engines.echo_model import BYTES
from engines.errors import InvariantError
from engines.token_prefix import TokenPrefix, own_prefix


def prefix() -> TokenPrefix:
    ids = tuple(b"ask: yes")
    return TokenPrefix(BYTES, ids, 5, tenant="t", priority=3, cached_tokens=4)


def test_text_is_the_answer_only() -> None:
    assert prefix().text == "yes"
    assert prefix().position == 3


def test_text_of_a_cut_character_is_marked() -> None:
    cut = TokenPrefix(BYTES, tuple("é".encode())[:1], 0)
    assert cut.text == "\ufffd"
    assert cut.extended(tuple("é".encode())[1:], 0).text == "é"


def test_a_fork_is_equal_and_independent() -> None:
    source = prefix()
    fork = source.fork()
    source.release()
    source.release()
    same = ("token_ids", "response_start", "tenant", "priority", "cached_tokens", "text")
    assert [getattr(fork, name) for name in same] == [getattr(source, name) for name in same]


def test_extending_keeps_whose_it_is_and_where_the_answer_began() -> None:
    longer = prefix().extended(tuple(b"!"), 8)
    assert (longer.text, longer.response_start, longer.cached_tokens) == ("yes!", 5, 8)
    assert (longer.tenant, longer.priority) == ("t", 3)
    assert prefix().token_ids == longer.token_ids[:-1]


def test_special_tokens_have_no_text() -> None:
    assert prefix().extended((256,), 0).text == "yes"


async def test_a_claim_of_another_engine_is_refused() -> None:
    mine = prefix()
    assert own_prefix(mine, BYTES) is mine
    with pytest.raises(InvariantError, match="TokenPrefix"):
        own_prefix(mine, [*BYTES])
    echo = open_engine("echo", "", {})
    foreign = await echo.open(echo.encode("x"))
    with pytest.raises(InvariantError, match="EchoPrefix"):
        own_prefix(foreign, BYTES)
