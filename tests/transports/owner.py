"""The owner of a writer that is tested by itself."""

from __future__ import annotations

from collections.abc import Sequence

from hubbub.codes import CloseCode
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.publication import Position
from hubbub.core.subscriber import Start
from hubbub.transports.writer import Writer


class SlowOwner:
    """Ends a slow connection with 3008, as a connection does, and counts them."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.slow_disconnects = 0
        #: What it was called with.
        self.joins: list[tuple[str, Start, Sequence[Frame]]] = []
        self.breaks: list[tuple[str, Position]] = []

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self.joins.append((channel, start, missed))

    def broken(self, channel: str, position: Position) -> bool:
        self.breaks.append((channel, position))
        return False

    def slow(self, reason: str) -> None:
        self.slow_disconnects += 1
        if self.writer is not None:
            self.writer.end(CloseCode.SLOW, reason)
