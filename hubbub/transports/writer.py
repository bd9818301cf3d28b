"""A writer: a transport with an outbox in front of it, which feeds hold as the subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position
from hubbub.core.subscriber import Start, deliver
from hubbub.transports.base import Transport


class Owner(Protocol):
    """Decides for a writer how subscriptions are answered and how the connection ends."""

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        """See :meth:`hubbub.core.subscriber.Subscriber.joined`."""

    def broken(self, channel: str, position: Position) -> bool:
        """See :meth:`hubbub.core.subscriber.Subscriber.broken`."""

    def slow(self, reason: str) -> None:
        """End the connection: the client is so slow that its outbox has no room.

        The batches in the outbox have been dropped.

        It does not change the subscribers of any feed.
        """


class _Front:
    """The attributes of a writer that a feed uses, at the front of the object.

    With thousands of subscribers, each cache line that a delivery needs more makes it slower.
    """

    __slots__ = ("id", "write")

    id: str
    write: Callable[[Batch], int]


class Writer(_Front):
    """Writes to one client, as the subscriber of its channels.

    ``write`` is not a method but the callable that is right at the moment: the transport's own while the
    client keeps up, the outbox's while it does not, and one that drops batches when nothing can be written
    any more.

    :param connection_id: the id of the connection that is written to.
    :param transport: the way out to the client.
    :param outbox: holds batches while the transport takes no more.
    :param owner: decides how subscriptions begin and how the connection ends.
    """

    __slots__ = ("_change", "_close", "_ending", "_gone", "_outbox", "_owner", "_transport")

    #: Missed publications may wait in the outbox, piece by piece.
    recovers_in_pieces = True

    def __init__(self, connection_id: str, transport: Transport, outbox: Outbox, owner: Owner) -> None:
        self.id = connection_id
        self._transport = transport
        self._outbox = outbox
        self._owner = owner
        # Nothing more is taken; and nothing that was taken can get out any more.
        self._ending = False
        self._gone = False
        # The code and reason to close with once the outbox is empty.
        self._close: tuple[int, str] | None = None
        # Set when the transport has taken something, or takes nothing any more. It is made by tasks that wait
        # for that. There are none for a client that keeps up, and an event is as large as all else here.
        self._change: asyncio.Event | None = None
        self.write = transport.write
        # Which may hold or cut this writer at once.
        transport.open(self)

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.size

    @property
    def dropped(self) -> int:
        """Messages that the policy has dropped so far because the client was slow."""
        return self._outbox.dropped

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written can reach the client any more."""
        return self._gone

    @property
    def has_room(self) -> bool:
        """Whether a direct send need not wait."""
        return self._outbox.has_room

    def send(self, batch: Batch) -> None:
        """Write ``batch`` to this client alone."""
        deliver(batch, (self,))

    async def room(self) -> None:
        """Wait until the outbox has room for a direct send, or takes nothing any more."""
        while not self._outbox.has_room and not self._ending:
            await self._changed()

    def stalled(self, now: float) -> float:
        """Return for how many seconds the client has taken none of the bytes that are being sent to it."""
        return self._transport.stalled(now)

    # Subscriber

    def write_rest(self, batch: Batch, taken: int) -> None:
        self._transport.write_rest(batch, taken)

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        self._owner.joined(channel, form, start, missed)

    def broken(self, channel: str, position: Position) -> bool:
        return self._owner.broken(channel, position)

    async def ready(self) -> int:
        """Wait until the client has taken everything that may not be dropped.

        :return: half the bytes of the outbox, so that the other half is left for publications that arrive
            meanwhile; 0 if the client takes nothing any more.
        """
        while not self._outbox.is_taken and not self._ending:
            await self._changed()
        return 0 if self._ending else max(1, self._outbox.limit // 2)

    # Ending

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        """Take no more batches; send those that wait, then a close frame. The first code counts.

        :param code: ``None`` to send no close frame.
        :param discard: whether the batches that wait are dropped.
        """
        if discard:
            self._outbox.clear()
        if not self._ending:
            self._ending = True
            self.write = _drop
            self._close = None if code is None else (code, reason)
            self._has_changed()
        self._close_if_empty()

    async def ended(self, timeout: float) -> None:
        """Wait until the close frame is out or the client has left. Nothing of the writer is left afterwards.

        :param timeout: seconds after which the connection is given up.
        """
        try:
            async with asyncio.timeout(timeout):
                while len(self._outbox) and not self._gone:
                    await self._changed()
                await self._transport.closed()
        except TimeoutError:
            # The client does not read. Its transport would wait for it for as long as the kernel does.
            self._transport.abort()
        finally:
            self.cut()
            await self._transport.stopped()

    # For the transport

    def hold(self, sending: Batch | None = None) -> None:
        if sending is not None:
            # The outbox is empty, so it takes any batch.
            self._outbox.push(sending)
            self._outbox.take()
        if not self._ending:
            self.write = self._hold

    def take(self) -> Batch | None:
        return self._outbox.take()

    def sent(self, batch: Batch) -> None:
        self._outbox.sent(batch)
        self._close_if_empty()
        self._has_changed()

    def flow(self) -> None:
        if not self._ending:
            self.write = self._transport.write

    def cut(self) -> None:
        self._gone = True
        self._ending = True
        self._close = None
        self.write = _drop
        # It holds its writer.
        self._owner = _NO_OWNER
        self._outbox.clear()
        self._transport.release()
        self._has_changed()

    # Internal

    def _hold(self, batch: Batch) -> int:
        """Let ``batch`` wait in the outbox; the owner ends the connection if the policy refuses it."""
        if not self._outbox.push(batch):
            self._owner.slow(f"slow: more than {self._outbox.limit} bytes waiting")
        return len(batch)

    def _close_if_empty(self) -> None:
        if self._close is not None and not len(self._outbox):
            close, self._close = self._close, None
            self._transport.close(*close)

    def _has_changed(self) -> None:
        """Wake the tasks that wait for the transport: it has taken something, or takes nothing any more."""
        if self._change is not None:
            self._change.set()
            self._change = None

    async def _changed(self) -> None:
        if self._change is None:
            self._change = asyncio.Event()
        await self._change.wait()


def _drop(batch: Batch) -> int:
    """Take the place of ``write`` when nothing can be written any more."""
    return len(batch)


class _NoOwner:
    """Takes the place of the owner when there is nothing to decide any more."""

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        return None

    def broken(self, channel: str, position: Position) -> bool:
        return True

    def slow(self, reason: str) -> None:
        return None


_NO_OWNER = _NoOwner()
