"""Frames and batches: what goes to clients, encoded once however many clients there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubbub.types import Kind

#: What a waiting frame is charged on top of its payload: roughly what Python keeps for the object, its
#: encoded form and its place in a queue. Without it a million empty messages would weigh nothing.
FRAME_OVERHEAD = 256


class Frame:
    """One message as every client gets it.

    Frames are shared: all members of a channel are sent the same object, and each wire form is made on
    first use and kept.
    """

    __slots__ = ("_message", "cost", "data", "kind")

    def __init__(self, kind: Kind, data: bytes) -> None:
        self.kind = kind
        self.data = data
        #: Bytes that this frame counts for while it waits in an outbox.
        self.cost = len(data) + FRAME_OVERHEAD
        self._message: dict[str, Any] | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The ``websocket.send`` event of ASGI. Servers read it and leave it as it is."""
        if self._message is None:
            if self.kind == "binary":
                self._message = {"type": "websocket.send", "bytes": self.data}
            else:
                self._message = {"type": "websocket.send", "text": self.data.decode()}
        return self._message


class Batch:
    """Frames that are written to a client in one go: what one channel collected in one turn of the loop.

    :param frames: in the order in which they go out.
    :param channel: where they were published, or ``None`` for what was sent to one client directly.
    """

    __slots__ = ("channel", "cost", "frames")

    def __init__(self, frames: Sequence[Frame], channel: str | None = None) -> None:
        self.frames = frames
        self.channel = channel
        self.cost = sum([frame.cost for frame in frames])
