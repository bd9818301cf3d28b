"""What the kernel knows of a TCP connection."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

# Of Linux's ``struct tcp_info`` (``linux/tcp.h``): segments in flight, bytes acknowledged (since 4.1), and
# bytes not sent yet (since 4.6).
_UNACKED = struct.Struct("=24xI92xQ16xI")
_HAS_INFO = hasattr(socket, "TCP_INFO")


class Progress(NamedTuple):
    """How far a peer has come."""

    #: Bytes that the peer's kernel has acknowledged since the connection was made.
    taken: int
    #: Whether there are others on their way to it.
    is_taking: bool


def progress(sock: Any) -> Progress | None:
    """How far the peer of ``sock`` has come, or ``None`` where the kernel does not tell: not on Linux, or not
    TCP.

    :param sock: a socket, or asyncio's ``TransportSocket``.
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
