"""Frames and batches: what goes to clients, encoded and compressed once however many clients there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

from hubbub.core.compression import deflate
from hubbub.core.publication import Publication
from hubbub.types import Kind

#: What a waiting frame is charged on top of its payload: roughly what Python keeps for the object, its
#: encoded form and its place in a queue. Without it a million empty messages would weigh nothing.
FRAME_OVERHEAD = 256

# FIN and the opcode (RFC 6455, section 5.2).
_TEXT = 0x81
_BINARY = 0x82
# "This message is compressed" (RFC 7692, section 6).
_RSV1 = 0x40


class Frame:
    """One message as every client gets it.

    Frames are shared: all members of a channel are sent the same object, and each wire form is made on
    first use and kept.

    :param publication: what it is of, if it was published, for members that want to know more of it.
    """

    __slots__ = ("_compressed", "_message", "cost", "data", "envelope", "kind", "publication")

    def __init__(self, kind: Kind, data: bytes, publication: Publication | None = None) -> None:
        self.kind = kind
        self.data = data
        self.publication = publication
        #: Bytes that this frame counts for while it waits in an outbox.
        self.cost = len(data) + FRAME_OVERHEAD
        #: The same in the form of envelopes, once it has been made; see :mod:`hubbub.core.forms`.
        self.envelope: Frame | None = None
        self._message: dict[str, Any] | None = None
        self._compressed: bytes | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The ``websocket.send`` event of ASGI. Servers read it and leave it as it is."""
        if self._message is None:
            if self.kind == "binary":
                self._message = {"type": "websocket.send", "bytes": self.data}
            else:
                self._message = {"type": "websocket.send", "text": self.data.decode()}
        return self._message

    @property
    def header(self) -> bytes:
        """What precedes ``data`` in a WebSocket frame from a server, whose frames are not masked: the same
        bytes for every client (:rfc:`6455#section-5.2`)."""
        opcode = _BINARY if self.kind == "binary" else _TEXT
        length = len(self.data)
        if length < 126:
            return bytes((opcode, length))
        if length < 65_536:
            return bytes((opcode, 126)) + length.to_bytes(2, "big")
        return bytes((opcode, 127)) + length.to_bytes(8, "big")

    @property
    def compressed(self) -> bytes:
        """The whole frame for clients that have negotiated compression. What does not get smaller is in it
        as it is, which they take as well (:rfc:`7692#section-6`)."""
        if self._compressed is None:
            payload = deflate(self.data)
            if payload is None:
                self._compressed = self.header + self.data
            else:
                first, *rest = Frame(self.kind, payload).header
                self._compressed = bytes((first | _RSV1, *rest)) + payload
        return self._compressed


class Batch(bytes):
    """Frames that are written to a client in one go: what one channel collected in one turn of the loop.

    A batch *is* its bytes on the wire, so that a transport's own ``write`` takes it: delivering it to a
    client that keeps up is that one call.
    """

    #: In the order in which they go out.
    frames: Sequence[Frame]
    #: Where they were published, or ``None`` for what was sent to one client directly.
    channel: str | None
    #: Bytes that the batch counts for while it waits in an outbox.
    cost: int
    #: Whether its publications have positions, so that none of them may be left out without a word.
    has_positions: bool

    def __new__(
        cls, frames: Sequence[Frame], channel: str | None = None, *, has_positions: bool = False
    ) -> Self:
        if len(frames) == 1:
            frame = frames[0]
            batch = super().__new__(cls, frame.header + frame.data)
            batch.cost = frame.cost
        else:
            parts = [part for frame in frames for part in (frame.header, frame.data)]
            batch = super().__new__(cls, b"".join(parts))
            batch.cost = sum([frame.cost for frame in frames])
        batch.frames = frames
        batch.channel = channel
        batch.has_positions = has_positions
        return batch

    @cached_property
    def compressed(self) -> bytes:
        """What goes over the wire instead to clients that have negotiated compression."""
        return b"".join([frame.compressed for frame in self.frames])
