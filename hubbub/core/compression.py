"""Compression of one message, by permessage-deflate (:rfc:`7692`)."""

from __future__ import annotations

import zlib

#: The window that everything is compressed with, as its base-2 logarithm: 4 KiB. Messages up to 16 KiB come
#: out no larger than with zlib's 32 KiB, which takes ten times the memory for each message to set up.
WINDOW_BITS = 12
_MEMORY_LEVEL = 5

#: Half the time of zlib's usual 6, for a tenth more bytes. Up to 1 KiB there is no difference.
_LEVEL = 3

#: Bytes from which it is tried. At this size JSON loses a quarter or more, at 128 bytes hardly a seventh,
#: which is less than what TCP and TLS put around it.
THRESHOLD = 256

# Of a message four times as long, so much is tried first: pictures and the like are dense from their
# beginning, and to find that out at the end of 256 KiB would hold up the event loop for 9 ms.
_PROBE = 4096

# What a flush ends with, and what a sender leaves out (RFC 7692, section 7.2.1).
_FLUSHED = b"\x00\x00\xff\xff"


def deflate(data: bytes | bytearray | memoryview) -> bytes | None:
    """``data`` as the payload of a compressed message that refers to none before it, so that every client
    can be sent the same; ``None`` where that would not make it smaller, or does not look as if it would."""
    if len(data) < THRESHOLD:
        return None
    if len(data) >= 4 * _PROBE and len(_compress(data[:_PROBE])) >= _PROBE:
        return None
    payload = _compress(data)
    return payload if len(payload) < len(data) else None


def _compress(data: bytes | bytearray | memoryview) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_FLUSHED)
