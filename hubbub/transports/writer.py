"""The seam between a connection and the socket it writes to."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.websockets import WebSocket

from hubbub.codes import CloseCode, clip_reason
from hubbub.core.feed import deliver
from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position


class _Member:
    """What a feed touches of a writer, at the front of the object: with thousands of members, each cache line
    that a delivery needs more is felt."""

    __slots__ = ("id", "write")

    id: str
    write: Callable[[Batch], int]


class Writer(_Member, ABC):
    """The way out to one client, and thereby its membership in feeds.

    ``write`` is not a method but whatever is right at the moment: it sends a batch after what was written
    before, as :class:`hubbub.core.feed.Member` describes it. When the client is gone, it drops.

    :class:`hubbub.transports.asgi.QueuedWriter` works on any server,
    :class:`hubbub.transports.socket.DirectWriter` where the server offers its transport.

    :param connection_id: the id of the connection that is written to.
    :param websocket: an accepted socket.
    :param outbox: where batches wait while the socket takes no more.
    :param on_end: called once, when the writer by itself decided to let a slow client go.
    """

    __slots__ = ("_change", "_ending", "_gone", "_loop", "_on_end", "_outbox", "_websocket")

    def __init__(
        self, connection_id: str, websocket: WebSocket, outbox: Outbox, on_end: Callable[[int, str], None]
    ) -> None:
        self.id = connection_id
        self._websocket = websocket
        self._outbox = outbox
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        # Nothing more is taken; and nothing that was taken can get out any more.
        self._ending = False
        self._gone = False
        # For whoever waits until the socket has taken something, or takes nothing any more. Nobody does for
        # a client that keeps up, and an event is as large as all else here.
        self._change: asyncio.Event | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.size

    @property
    def dropped(self) -> int:
        """Messages that the policy dropped so far because the client was slow."""
        return self._outbox.dropped

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written can reach the client any more."""
        return self._gone

    def send(self, batch: Batch) -> None:
        """Write ``batch`` to this client alone."""
        deliver(batch, (self,))

    @abstractmethod
    def write_rest(self, batch: Batch, taken: int) -> None:
        """``write`` took only the first ``taken`` bytes of ``batch``: see to the others."""

    @property
    def has_room(self) -> bool:
        """Whether a direct send need not wait."""
        return self._outbox.has_room

    async def room(self) -> None:
        """Wait until the client has taken so much that there is room for more, or takes nothing more."""
        while not self._outbox.has_room and not self._ending:
            await self._changed()

    async def ready(self) -> int:
        """Wait until the client has taken all that it must get. Returns how many bytes of missed publications
        may be written: half of the outbox, which leaves room for what is published meanwhile; 0 if nothing is
        taken any more."""
        while not self._outbox.is_taken and not self._ending:
            await self._changed()
        return 0 if self._ending else max(1, self._outbox.limit // 2)

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        """Take nothing more; send what waits (unless ``discard``), then a close frame (unless ``code`` is
        ``None``). Does not wait. Only the first call counts."""
        if discard:
            self._outbox.clear()
        if self._ending:
            return
        self._ending = True
        self.write = _drop
        self._has_changed()
        self._end_after_backlog(None if code is None else (code, reason))

    @abstractmethod
    async def ended(self, timeout: float) -> None:
        """Wait until the close frame is out or the client is gone, for at most ``timeout`` seconds; then
        give up. Nothing of the writer is left when this returns."""

    @abstractmethod
    def stalled(self, now: float) -> float:
        """For how many seconds the client has taken nothing of what is being sent to it."""

    def cut(self) -> None:
        """The client is gone, or a close frame is out: nothing may be written any more."""
        self._gone = True
        self._ending = True
        self.write = _drop
        # The connection holds its writer.
        self._on_end = _ignore
        self._outbox.clear()
        self._has_changed()

    def broken(self, channel: str, position: Position) -> None:
        """Something that was published to ``channel`` is lost to the client: let it go, so that it comes back
        and starts afresh."""
        reason = f"insufficient state: {channel!r} goes on from {position.offset}"
        self.end(CloseCode.INSUFFICIENT_STATE, clip_reason(reason))
        self._on_end(CloseCode.INSUFFICIENT_STATE, clip_reason(reason))

    # For implementations

    @abstractmethod
    def _end_after_backlog(self, close: tuple[int, str] | None) -> None:
        """Once everything that waits is out, send a close frame if one is given. Does not wait."""

    def _has_changed(self) -> None:
        """The socket has taken something, or takes nothing any more."""
        if self._change is not None:
            self._change.set()
            self._change = None

    async def _changed(self) -> None:
        """Wait until that happens."""
        if self._change is None:
            self._change = asyncio.Event()
        await self._change.wait()

    def _hold(self, batch: Batch) -> int:
        """Let ``batch`` wait in the outbox, or let the client go if that is the policy."""
        if not self._outbox.push(batch):
            reason = f"slow: more than {self._outbox.limit} bytes waiting"
            self.end(CloseCode.SLOW, reason)
            self._on_end(CloseCode.SLOW, reason)
        return len(batch)


def _drop(batch: Batch) -> int:
    """Takes the place of ``write`` when nothing may be written any more."""
    return len(batch)


def _ignore(code: int, reason: str) -> None:
    """Takes the place of ``on_end`` when there is nothing to end any more."""
