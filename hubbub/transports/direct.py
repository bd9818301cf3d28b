"""The way out straight into the socket: one system call per client and batch, and no task."""

from __future__ import annotations

import asyncio
import logging
import os
from asyncio import Transport
from collections.abc import Callable
from functools import partial

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.direct")


class DirectWriter(Writer):
    """Writes into the socket while it takes, and into the outbox while it does not.

    ``write`` is ``os.write`` in the one case and ``_hold`` in the other, so that flow control costs nothing
    as long as it is not needed. Past the transport, because its own ``write`` takes as long as the system
    call it makes; that is safe because of two rules:

    * The transport pauses us as soon as it holds a single byte (its high-water mark is 0), so that nothing
      overtakes what it holds. What the socket does not take at once is handed to the transport, and so is
      every error: it knows what to do about them.
    * Nothing is written once the connection is lost (``cut``), which the protocol learns before the
      transport closes the file descriptor.

    Where there is no plain socket (TLS, or not POSIX), ``write`` is the transport's.

    :param transport: of the accepted socket.
    """

    __slots__ = ("_closing", "_is_paused", "_put", "_stalled_at", "_transport")

    def __init__(
        self,
        connection_id: str,
        websocket: WebSocket,
        outbox: Outbox,
        on_end: Callable[[int, str], None],
        transport: Transport,
    ) -> None:
        super().__init__(connection_id, websocket, outbox, on_end)
        self._transport = transport
        # What ``write`` is as long as the socket takes.
        self._put = self._open()
        self.write = self._put
        self._is_paused = False
        # While paused: how much the transport held when it last took something, and when that was.
        self._stalled_at = (0, 0.0)
        self._closing: asyncio.Task[None] | None = None

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
        holds = self._transport.get_write_buffer_size()
        if holds < held:
            self._stalled_at = (holds, now)
            return 0.0
        return now - since

    def write_rest(self, batch: Batch, taken: int) -> None:
        self._transport.write(memoryview(batch)[taken:])

    # For the protocol

    def pause(self) -> None:
        """The transport holds more than it should: write nothing into it for now."""
        self._is_paused = True
        self._stalled_at = (self._transport.get_write_buffer_size(), self._loop.time())
        if not self._ending:
            self.write = self._hold

    def resume(self) -> None:
        """The transport takes again, first of all what waits."""
        self._is_paused = False
        while not self._is_paused and (batch := self._outbox.take()):
            try:
                taken = self._put(batch)
            except OSError:
                taken = 0
            if taken != len(batch):
                self.write_rest(batch, taken)  # which pauses again
            self._outbox.sent(batch)
        if not self._is_paused and not self._ending:
            self.write = self._put
        self._changed.set()

    def flush(self) -> None:
        """Write what waits although the transport holds enough: its connection is about to be closed."""
        while batch := self._outbox.take():
            self._transport.write(batch)
            self._outbox.sent(batch)

    # Inside

    def _open(self) -> Callable[[Batch], int]:
        socket = self._transport.get_extra_info("socket")
        is_plain = self._transport.get_extra_info("sslcontext") is None and os.name == "posix"
        if socket is None or not is_plain or self._transport.is_closing():
            return self._pass_on
        self._transport.set_write_buffer_limits(high=0)
        return partial(os.write, socket.fileno())

    def _pass_on(self, batch: Batch) -> int:
        self._transport.write(batch)  # which may pause
        return len(batch)

    def _end_after_backlog(self, close: tuple[int, str] | None) -> None:
        if close is not None:
            self._closing = self._loop.create_task(self._close(*close))

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
