"""The way out straight into a transport: one call per client and batch, and no task."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Transport
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.codes import CloseCode
from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox

logger = logging.getLogger("hubbub.direct")


class DirectWriter:
    """Writes into the transport while it takes, and into an outbox while it does not.

    ``write`` is not a method but whatever is right at the moment: the transport's own ``write``, or
    ``_wait``, or ``_drop``. So flow control costs nothing as long as it is not needed.

    :param connection_id: the id of the connection that is written to.
    :param transport: of an accepted WebSocket without anything between it and the frames.
    :param websocket: the same connection, for closing it.
    :param outbox: where batches wait while the transport takes no more.
    :param on_end: called once, when the writer by itself decided to let a slow client go.
    """

    def __init__(
        self,
        connection_id: str,
        transport: Transport,
        websocket: WebSocket,
        outbox: Outbox,
        on_end: Callable[[int, str], None],
    ) -> None:
        self.id = connection_id
        self.write: Callable[[Batch], object] = transport.write
        self._transport = transport
        self._websocket = websocket
        self._outbox = outbox
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._is_paused = False
        self._gone = False
        self._ending = False
        self._closing: asyncio.Task[None] | None = None
        # Set when the transport has taken something, or will not any more; cleared by whoever waits.
        self._changed = asyncio.Event()
        # While paused: how much the transport held when it last took something, and when that was.
        self._stalled_at = (0, 0.0)

    @property
    def backlog(self) -> int:
        return self._outbox.size

    @property
    def dropped(self) -> int:
        return self._outbox.dropped

    @property
    def is_gone(self) -> bool:
        return self._gone

    async def room(self) -> None:
        while not self._outbox.has_room and not self._gone:
            self._changed.clear()
            await self._changed.wait()

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        if discard:
            self._outbox.clear()
        if self._ending:
            return
        self._ending = True
        self.write = _drop
        self._changed.set()
        if code is not None and not self._gone:
            self._closing = self._loop.create_task(self._close(code, reason))

    async def ended(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._flushed()
                if self._closing is not None:
                    await asyncio.wait([self._closing])
        except TimeoutError:
            # It does not read. Closing the transport would wait for it, for as long as the kernel does.
            self._transport.abort()
        finally:
            self.cut()
            if self._closing is not None and self._closing.cancel():
                await asyncio.wait([self._closing], timeout=1.0)

    def stalled(self, now: float) -> float:
        if not self._is_paused:
            return 0.0
        held, since = self._stalled_at
        if self._transport.get_write_buffer_size() < held:
            self._stalled_at = (self._transport.get_write_buffer_size(), now)
            return 0.0
        return now - since

    # For the protocol

    def pause(self) -> None:
        """The transport holds more than it should: write nothing into it for now."""
        self._is_paused = True
        self._stalled_at = (self._transport.get_write_buffer_size(), self._loop.time())
        if not self._ending:
            self.write = self._wait

    def resume(self) -> None:
        """The transport takes again, first of all what waits."""
        self._is_paused = False
        while not self._is_paused and (batch := self._outbox.take()):
            self._transport.write(batch)  # which may pause again
            self._outbox.sent(batch)
        if not self._is_paused and not self._ending:
            self.write = self._transport.write
        self._changed.set()

    def cut(self) -> None:
        """Nothing may be written any more: the client is gone, or a close frame is out."""
        self._gone = True
        self._ending = True
        self.write = _drop
        self._outbox.clear()
        self._changed.set()

    # Inside

    def _wait(self, batch: Batch) -> None:
        if not self._outbox.push(batch):
            reason = f"slow: more than {self._outbox.limit} bytes waiting"
            self.end(CloseCode.SLOW, reason)
            self._on_end(CloseCode.SLOW, reason)

    async def _flushed(self) -> None:
        while len(self._outbox) and not self._gone:
            self._changed.clear()
            await self._changed.wait()

    async def _close(self, code: int, reason: str) -> None:
        try:
            await self._flushed()
            await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            logger.debug("The client is gone: %r", exc)


def _drop(batch: Batch) -> None:
    """Takes the place of ``write`` when nothing may be written any more."""
