"""The way out straight into the socket: one system call per client and batch, and no task."""

from __future__ import annotations

import asyncio
import logging
import os
from asyncio import Transport
from collections.abc import Callable
from socket import socket

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.tcp import progress
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.direct")


class DirectWriter(Writer):
    """Writes into the socket while it takes, and into the outbox while it does not.

    ``write`` is ``socket.send`` in the one case and ``_hold`` in the other, so that flow control costs
    nothing as long as it is not needed. It goes past the transport, whose own ``write`` takes a good part of
    the time of the system call it makes. Two rules make that safe:

    * The transport pauses us as soon as it holds a single byte (its high-water mark is 0), so that nothing
      overtakes what it holds. What the socket does not take at once is handed to the transport, and so is
      what it refused with an error: the transport knows what to do about that.
    * Nothing is written once the connection is lost (``cut``), which the protocol learns before the
      transport closes the file descriptor.

    Where there is no plain socket (TLS, or not POSIX), it writes into the transport. For a client that has
    negotiated compression, ``write`` is a method that writes the compressed form.

    :param transport: of the accepted socket.
    :param compress: whether the client has negotiated permessage-deflate, with the window of
        :mod:`hubbub.core.compression`.
    """

    __slots__ = ("_closing", "_compress", "_flow", "_is_paused", "_socket", "_stalled_at", "_transport")

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
        self._transport = transport
        self._compress = compress
        self._socket = _socket_of(transport)
        # What ``write`` is as long as the socket takes.
        self._flow: Callable[[Batch], int] = self._write_form
        if self._socket is not None:
            transport.set_write_buffer_limits(high=0)
            if not compress:
                self._flow = self._socket.send
        self.write = self._flow
        self._is_paused = False
        # While paused: how much the transport held, and the peer had acknowledged, when it last took
        # something, and when that was.
        self._stalled_at = (0, 0, 0.0)
        self._closing: asyncio.Task[None] | None = None

    def __del__(self) -> None:
        # The file descriptor is the transport's to close, even if nobody has said that it is lost.
        self._release()

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
        held, acknowledged, since = self._stalled_at
        holds, acknowledges = self._progress()
        if holds < held or acknowledges > acknowledged:
            self._stalled_at = (holds, acknowledges, now)
            return 0.0
        return now - since

    def write_rest(self, batch: Batch, taken: int) -> None:
        self._hand_over(memoryview(batch)[taken:])

    def cut(self) -> None:
        super().cut()
        # It is a method of this object, where it is not the socket's.
        self._flow = self.write
        self._release()

    # For the protocol

    def pause(self) -> None:
        """The transport holds something: write nothing past it."""
        self._is_paused = True
        self._stalled_at = (*self._progress(), self._loop.time())
        if not self._ending:
            self.write = self._hold

    def resume(self) -> None:
        """The transport takes again, first of all what waits."""
        self._is_paused = False
        while not self._is_paused and (batch := self._outbox.take()):
            self._write_form(batch)  # which may pause again
            self._outbox.sent(batch)
        if not self._is_paused and not self._ending:
            self.write = self._flow
        self._has_changed()

    def flush(self) -> None:
        """Write what waits although the transport holds enough: its connection is about to be closed."""
        while batch := self._outbox.take():
            self._transport.write(self._form(batch))
            self._outbox.sent(batch)

    # Inside

    def _progress(self) -> tuple[int, int]:
        """What the transport holds, and what the peer has acknowledged. The kernel takes megabytes from the
        transport at once, which a slow peer may be longer busy with than it may take nothing at all."""
        peer = progress(self._transport.get_extra_info("socket"))
        return self._transport.get_write_buffer_size(), 0 if peer is None else peer.taken

    def _form(self, batch: Batch) -> bytes:
        return batch.compressed if self._compress else batch

    def _write_form(self, batch: Batch) -> int:
        """Write ``batch`` in the form that the client takes: into the socket what goes in, then into the
        transport."""
        form = self._form(batch)
        taken = 0
        if self._socket is not None:
            try:
                taken = self._socket.send(form)
            except OSError:
                taken = 0
        if taken < len(form):
            self._hand_over(memoryview(form)[taken:])
        return len(batch)

    def _hand_over(self, rest: memoryview) -> None:
        """Leave to the transport what the socket does not take. As a rule, it pauses us."""
        self._transport.write(rest)
        if self._transport.is_closing():
            # The connection is lost. A handler that sends without ever waiting would keep the event loop from
            # telling the protocol.
            self.cut()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def _end_after_backlog(self, close: tuple[int, str] | None) -> None:
        if close is not None:
            self._closing = self._loop.create_task(self._close(*close))

    async def _flushed(self) -> None:
        while len(self._outbox) and not self._gone:
            await self._changed()

    async def _close(self, code: int, reason: str) -> None:
        try:
            await self._flushed()
            await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            logger.debug("The client is gone: %r", exc)


def _socket_of(transport: Transport) -> socket | None:
    """The socket under ``transport`` as an object that can send, if what is sent on it is what arrives."""
    inner = transport.get_extra_info("socket")
    is_encrypted = transport.get_extra_info("sslcontext") is not None
    if inner is None or is_encrypted or transport.is_closing() or os.name != "posix":
        return None
    outer = socket(inner.family, inner.type, inner.proto, fileno=inner.fileno())
    outer.setblocking(False)
    return outer
