"""Frames, messages and batches: publications on their way to clients, encoded once for all of them.

A *frame* is one publication in a feed. A *message* is a frame in one codec, or something else that is sent to
a client. A *batch* is messages in one carrier, to be written in one go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from hubbub.core.publication import START, Position, Publication

if TYPE_CHECKING:
    from hubbub.core.forms import Codec

#: Bytes that a frame or a message is charged on top of its payload: roughly the size of the Python objects
#: that it consists of and of its place in a queue. Without it a million empty messages would weigh nothing.
FRAME_OVERHEAD = 256


class Message:
    """One message in one encoding. Messages are shared by all batches that contain them.

    :param data: the encoded message, without its carrier.
    :param publication: the publication that is encoded, if it is one.
    """

    __slots__ = ("cost", "data", "publication")

    def __init__(self, data: bytes, publication: Publication | None = None) -> None:
        self.data = data
        self.publication = publication
        #: Bytes that the message counts for while it waits in an outbox.
        self.cost = len(data) + FRAME_OVERHEAD


class Weight:
    """The bytes of frames that are kept together. It grows when one of them is encoded in another codec."""

    __slots__ = ("cost",)

    def __init__(self) -> None:
        self.cost = 0


class Frame:
    """One publication in a feed, with its encodings. All subscribers are sent from the same frame."""

    __slots__ = ("_codec", "_message", "_others", "_weight", "cost", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        #: Bytes that the frame keeps in memory: the payload, its encodings and a fixed charge.
        self.cost = len(publication.data) + FRAME_OVERHEAD
        self._weight: Weight | None = None
        # The first encoding has its own place: nearly all frames have one, and a dict is as large as all
        # else.
        self._codec: Codec | None = None
        self._message: Message | None = None
        self._others: dict[Codec, Message] | None = None

    @property
    def position(self) -> Position:
        """The position of the publication."""
        return self.publication.position

    def encoded(self, codec: Codec) -> Message:
        """Return the publication as ``codec`` encodes it. It is encoded once."""
        if self._codec is codec:
            assert self._message is not None
            return self._message
        if self._others is not None and codec in self._others:
            return self._others[codec]
        message = self._encode(codec)
        if self._codec is None:
            self._codec, self._message = codec, message
        else:
            self._others = self._others or {}
            self._others[codec] = message
        if message.data is not self.publication.data:
            self._grow(message.cost)
        return message

    def weigh(self, weight: Weight | None) -> None:
        """Count this frame in ``weight`` from now on, and no longer where it was counted before."""
        if self._weight is not None:
            self._weight.cost -= self.cost
        self._weight = weight
        if weight is not None:
            weight.cost += self.cost

    # Internal

    def _encode(self, codec: Codec) -> Message:
        return codec.encode(self.publication)

    def _grow(self, cost: int) -> None:
        self.cost += cost
        if self._weight is not None:
            self._weight.cost += cost


class EventFrame(Frame):
    """An event of a channel that is not a publication, such as a join. It is encoded once in each codec.

    :param event: its type.
    :param fields: see :meth:`hubbub.core.forms.Codec.event`.
    """

    __slots__ = ("_event", "_fields")

    def __init__(self, channel: str, event: str, fields: Mapping[str, Any]) -> None:
        super().__init__(Publication(channel, b"", "json"))
        self._event = event
        self._fields = fields

    def _encode(self, codec: Codec) -> Message:
        return codec.event(self._event, self.publication.channel, self._fields)


class Batch(bytes):
    """Messages that are written to a client in one go: those of a channel in one turn of the event loop.

    A batch *is* its bytes on the wire, so that a transport's own ``write`` takes it: delivering it to a
    client that keeps up is that one call. This class joins messages as they are encoded; carriers that put
    something around each message override :meth:`on_wire`.

    :param messages: at least one, in the order in which they go out.
    :param channel: where they were published, or ``None`` for messages sent to one client directly.
    :param lossless: whether none of the messages may be dropped. A client that does not keep up with them is
        disconnected. So it is in channels with a history, and for presence events.
    """

    messages: Sequence[Message]
    channel: str | None
    lossless: bool = False
    #: Bytes that the batch counts for while it waits in an outbox.
    cost: int

    def __new__(
        cls, messages: Sequence[Message], channel: str | None = None, *, lossless: bool = False
    ) -> Self:
        batch = super().__new__(cls, cls.on_wire(messages))
        batch.cost = messages[0].cost if len(messages) == 1 else sum([each.cost for each in messages])
        batch.messages = messages
        batch.channel = channel
        if lossless:
            batch.lossless = True
        return batch

    @staticmethod
    def on_wire(messages: Sequence[Message]) -> bytes:
        """Return ``messages`` as the bytes that go over the wire."""
        return b"".join([message.data for message in messages])

    def newest(self) -> Self:
        """Return a batch of the last message alone."""
        return type(self)(self.messages[-1:], self.channel, lossless=self.lossless)


def last_position(frames: Sequence[Frame]) -> Position:
    """Return the position of the last of ``frames`` that has one; otherwise :data:`START`."""
    return next((frame.position for frame in reversed(frames) if frame.publication.offset), START)
