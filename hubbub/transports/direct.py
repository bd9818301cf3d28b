"""The way out straight into a transport: one call per client and batch, and no task."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Transport
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.direct")


class DirectWriter(Writer):
    """Writes into the transport while it takes, and into the outbox while it does not.

    ``write`` is the transport's own in the one case and ``_hold`` in the other, so that flow control costs
    nothing as long as it is not needed. For a client that has negotiated compression it is a function that
    gives the transport the compressed form.

    :param transport: of the accepted socket, with nothing between it and the frames.
    :param compress: whether the client has negotiated permessage-deflate, with the window of
        :mod:`hubbub.core.deflate`.
    """

    def __init__(
        self,
        connection_id: str,
        websocket: WebSocket,
        outbox: Outbox,
        on_end: Callable[[int, str], None],
        transport: Transport,
        *,
        compress: bool = False,
    ) -> None:
        super().__init__(connection_id, websocket, outbox, on_end)
        self._deliver = _compressing(transport) if compress else transport.write
        self.write = self._deliver
        self._transport = transport
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
            self._deliver(batch)  # which may pause again
            self._outbox.sent(batch)
        if not self._is_paused and not self._ending:
            self.write = self._deliver
        self._changed.set()

    def flush(self) -> None:
        """Write what waits although the transport holds enough: its connection is about to be closed."""
        while batch := self._outbox.take():
            self._deliver(batch)
            self._outbox.sent(batch)

    # Inside

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


def _compressing(transport: Transport) -> Callable[[Batch], None]:
    write = transport.write

    def write_compressed(batch: Batch) -> None:
        write(batch.compressed)

    return write_compressed
