"""The WebSocket carrier: each message in a WebSocket frame of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hubbub.core.compression import deflate
from hubbub.core.frames import FRAME_OVERHEAD, Batch, Frame, Message
from hubbub.core.publication import Publication
from hubbub.types import Kind

if TYPE_CHECKING:
    from hubbub.core.forms import Codec

# FIN and the opcode (RFC 6455, section 5.2).
_TEXT = 0x81
_BINARY = 0x82
# "This message is compressed" (RFC 7692, section 6).
_RSV1 = 0x40


class WebSocketMessage(Message):
    """One message as every WebSocket client gets it.

    :param kind: whether it goes out in a text or in a binary frame.
    """

    __slots__ = ("_compressed", "_event", "kind")

    def __init__(self, kind: Kind, data: bytes, publication: Publication | None = None) -> None:
        # Not by the base class: the call would be made for each publication.
        self.data = data
        self.publication = publication
        self.cost = len(data) + FRAME_OVERHEAD
        self.kind = kind
        self._event: dict[str, Any] | None = None
        self._compressed: bytes | None = None

    @property
    def event(self) -> dict[str, Any]:
        """The ``websocket.send`` event of ASGI. It is shared: servers read it and leave it unchanged."""
        if self._event is None:
            if self.kind == "binary":
                self._event = {"type": "websocket.send", "bytes": self.data}
            else:
                self._event = {"type": "websocket.send", "text": self.data.decode()}
        return self._event

    @property
    def header(self) -> bytes:
        """The bytes before ``data`` in a WebSocket frame.

        Frames from a server are not masked, so they are the same for every client (:rfc:`6455#section-5.2`).
        """
        return _header(self.kind, len(self.data))

    @property
    def compressed(self) -> bytes:
        """The whole frame for clients that have negotiated compression.

        A message that compression does not make smaller is left as it is, which such clients accept as well
        (:rfc:`7692#section-6`).
        """
        if self._compressed is None:
            payload = deflate(self.data)
            if payload is None:
                self._compressed = self.header + self.data
            else:
                first, *rest = _header(self.kind, len(payload))
                self._compressed = bytes((first | _RSV1, *rest)) + payload
        return self._compressed


class WebSocketBatch(Batch):
    """Messages in WebSocket frames."""

    messages: Sequence[WebSocketMessage]

    @staticmethod
    def on_wire(messages: Sequence[Any]) -> bytes:
        # All of them are WebSocket messages, which the base class cannot know.
        if len(messages) == 1:
            message: WebSocketMessage = messages[0]
            return _header(message.kind, len(message.data)) + message.data
        return b"".join(
            [part for each in messages for part in (_header(each.kind, len(each.data)), each.data)]
        )

    @cached_property
    def events(self) -> Sequence[dict[str, Any]]:
        """The ``websocket.send`` event of each message."""
        return [message.event for message in self.messages]

    @cached_property
    def compressed(self) -> bytes:
        """The bytes on the wire for clients that have negotiated compression."""
        return b"".join([message.compressed for message in self.messages])


class WebSocketForm:
    """Base of the forms that carry each publication in a WebSocket frame of its own."""

    codec: Codec
    reports_recovery: bool

    def batch(self, frames: Sequence[Frame], channel: str, *, lossless: bool) -> WebSocketBatch:
        codec = self.codec
        if len(frames) == 1:
            # The usual case, without the cost of a comprehension.
            return WebSocketBatch([frames[0].encoded(codec)], channel, lossless=lossless)
        return WebSocketBatch([frame.encoded(codec) for frame in frames], channel, lossless=lossless)

    def reply(self, *messages: Message) -> WebSocketBatch:
        return WebSocketBatch(messages)


def _header(kind: Kind, length: int) -> bytes:
    opcode = _BINARY if kind == "binary" else _TEXT
    if length < 126:
        return bytes((opcode, length))
    if length < 65_536:
        return bytes((opcode, 126)) + length.to_bytes(2, "big")
    return bytes((opcode, 127)) + length.to_bytes(8, "big")
