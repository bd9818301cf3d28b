"""Limits on the data that a client may send, and on the time that it may take.

The size of a message is limited by the hub (``Hub(max_message_size=...)``), and where no hub's connection has
the socket, by uvicorn (``--ws-max-size``).
"""

from __future__ import annotations

# The request

#: Bytes of a request head: the request line and all headers.
MAX_HEAD = 65_536

#: Seconds within which a request head must arrive: the first one after the connection was made, later ones
#: after their first byte. In between, uvicorn's keep-alive timeout applies.
HEAD_TIMEOUT = 10.0

#: Seconds for which a client whose request head was too large may continue to send it. If the connection were
#: closed at once it would be reset, and the answer lost (:rfc:`9112#section-9.6`).
LINGER = 2.0

#: Bytes that a client may send before its WebSocket handshake is answered; then reading pauses.
EARLY_BYTES = 65_536

# Messages

#: Messages and bytes that are read ahead of a hub's connection. uvicorn pauses reading after each message and
#: resumes when the application has taken it: two system calls per message.
READ_AHEAD_MESSAGES = 64
READ_AHEAD_BYTES = 65_536

#: Frames of one message: ``FRAGMENTS``, and one more per ``FRAGMENT_BYTES`` of the maximum message size. Each
#: frame costs memory of its own, even an empty one.
FRAGMENTS = 1024
FRAGMENT_BYTES = 16

#: Bytes that one read from a socket (up to 256 KiB) may inflate to. Without it, many messages of just under
#: the maximum size would be a gigabyte before the first of them is handled.
INFLATE_LIMIT = 16 * 1024 * 1024

# Pings and closing

#: Bytes of pings after which a client that does not read the pongs is not read from any more. While the
#: transport holds unsent data, only the latest ping is answered (RFC 6455, section 5.5.3).
PING_LIMIT = 65_536

#: Seconds that a client may take to receive pending data after the server has closed its connection.
ABORT_AFTER = 5.0

# Shutdown

#: Connections closed per second when the server shuts down. If all were closed at once, all clients would
#: reconnect at once.
DRAIN_RATE = 500.0

#: Share of the graceful shutdown's time that this may take; handlers need the rest to end.
DRAIN_SHARE = 0.8
