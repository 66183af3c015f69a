"""The socket that requests come through."""

import socket

from server.serve import _listen
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
