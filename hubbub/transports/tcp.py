"""The progress of a TCP connection, as the kernel reports it."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

# Of Linux's ``struct tcp_info`` (``linux/tcp.h``): segments in flight, bytes acknowledged (since 4.1), and
# bytes not sent yet (since 4.6).
_UNACKED = struct.Struct("=24xI92xQ16xI")
_HAS_INFO = hasattr(socket, "TCP_INFO")


class Progress(NamedTuple):
    """How much a peer has taken.

    :param taken: bytes that the peer's kernel has acknowledged since the connection was made.
    :param is_taking: whether more bytes are on their way to it.
    """

    taken: int
    is_taking: bool


def progress(sock: Any) -> Progress | None:
    """Return how much the peer of ``sock`` has taken.

    :param sock: a socket, or asyncio's ``TransportSocket``.
    :return: ``None`` if the kernel does not report it: the system is not Linux, or the socket is not TCP.
    """
    if not _HAS_INFO or sock is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    except OSError:
        return None
    if len(info) < _UNACKED.size:
        return None
    in_flight, taken, not_sent = _UNACKED.unpack_from(info)
    return Progress(taken, in_flight > 0 or not_sent > 0)
