"""The seam between a writer and the socket that its batches go out on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from hubbub.core.frames import Batch


class Source(Protocol):
    """The writer that has opened a transport, as the transport sees it."""

    def hold(self, sending: Batch | None = None) -> None:
        """Let batches wait from now on: the transport takes no more.

        :param sending: a batch that the transport is still sending. It counts until :meth:`sent` is called.
        """

    def take(self) -> Batch | None:
        """Return the batch that goes out next, if one waits. It counts until :meth:`sent` is called."""

    def sent(self, batch: Batch) -> None:
        """Take note that ``batch`` is out."""

    def flow(self) -> None:
        """Write to the transport again: nothing waits, and it takes more."""

    def cut(self) -> None:
        """Take note that nothing reaches the client any more."""


class Transport(ABC):
    """The way out to one client: it writes batches in order, and then a close frame.

    A server that has a transport of its own offers it in the scope, see
    :data:`hubbub.transports.asgi.EXTENSION`.
    """

    __slots__ = ("_is_lost", "_source", "_task")

    def __init__(self) -> None:
        self._source: Source | None = None
        self._is_lost = False
        # Sends batches that wait, or the close frame. It exists only while there are any.
        self._task: asyncio.Task[None] | None = None

    def open(self, source: Source) -> None:
        """Begin to take batches from ``source``. Called once."""
        self._source = source
        if self._is_lost:
            source.cut()

    @property
    @abstractmethod
    def write(self) -> Callable[[Any], int]:
        """The callable that sends a batch while the client keeps up.

        It is called as :class:`~hubbub.core.subscriber.Subscriber` describes, with batches in a carrier that
        the transport can send.
        """

    @abstractmethod
    def write_rest(self, batch: Batch, taken: int) -> None:
        """Send the bytes of ``batch`` after the first ``taken``, which ``write`` took."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Send a close frame after everything that was written, without waiting for it. Called once."""

    async def closed(self) -> None:
        """Wait until everything that was written is out, the close frame included."""
        if self._task is not None:
            await asyncio.wait([self._task])

    @abstractmethod
    def abort(self) -> None:
        """Give up: send nothing of the batches that have not been sent yet."""

    async def stopped(self) -> None:
        """Stop sending. No task is left when this returns."""
        if self._task is not None and self._task.cancel():
            await asyncio.wait([self._task], timeout=1.0)
        # A cancelled task keeps its traceback, whose frames hold this object: a reference cycle.
        self._task = None

    @abstractmethod
    def stalled(self, now: float) -> float:
        """Return for how many seconds the client has taken none of the bytes that are being sent to it.

        :param now: the event loop's time.
        """

    def lost(self) -> None:
        """Write nothing any more: the connection is lost, or its close frame is out."""
        self._is_lost = True
        if self._source is not None:
            self._source.cut()
        self.release()

    def release(self) -> None:
        """Forget the writer, and release all resources for writing."""
        self._is_lost = True
        self._source = None
