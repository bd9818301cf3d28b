"""Compression of one message, by permessage-deflate (:rfc:`7692`)."""

from __future__ import annotations

import zlib

#: The window of all compression, as its base-2 logarithm: 4 KiB. Messages up to 16 KiB come out no larger
#: than with zlib's 32 KiB, which takes ten times the memory to set up for each message.
WINDOW_BITS = 12
_MEMORY_LEVEL = 5

#: Half the time of zlib's usual 6, for a tenth more bytes. Up to 1 KiB there is no difference.
_LEVEL = 3

#: Bytes from which compression is tried. At this size JSON shrinks by a quarter or more, at 128 bytes by
#: hardly a seventh, which is less than TCP and TLS put around it.
THRESHOLD = 256

# The bytes that are tried first of a message of four times that size. Pictures and the like do not shrink
# from their beginning on; to detect that at the end of 256 KiB would hold up the event loop for 9 ms.
_PROBE = 4096

# The bytes that a flush ends with, and that a sender leaves out (RFC 7692, section 7.2.1).
_FLUSHED = b"\x00\x00\xff\xff"


def deflate(data: bytes | bytearray | memoryview) -> bytes | None:
    """Compress ``data`` as the payload of one message (:rfc:`7692#section-7.2.1`).

    It refers to no message before it, so that every client can be sent the same bytes.

    :return: ``None`` if compression does not make the message smaller, or does not look as if it would.
    """
    if len(data) < THRESHOLD:
        return None
    if len(data) >= 4 * _PROBE and len(_compress(data[:_PROBE])) >= _PROBE:
        return None
    payload = _compress(data)
    return payload if len(payload) < len(data) else None


def _compress(data: bytes | bytearray | memoryview) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_FLUSHED)
