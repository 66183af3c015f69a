"""The socket that requests come through."""

import socket
import sys
from types import ModuleType

import pytest

from server.serve import _listen, _loop_factory
from server.settings import Settings


def test_replies_do_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm on, a reply's body came 40 ms after its headers."""
    with (
        _listen(Settings(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_uvloop_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("uvloop")
    made.new_event_loop = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", made)
    assert _loop_factory() is made.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert _loop_factory() is None
