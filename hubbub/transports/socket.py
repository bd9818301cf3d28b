"""The direct path: straight into the socket, with one system call per client and batch, and no task."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from socket import socket
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.protocols.websocket import WebSocketBatch
from hubbub.transports.base import Source, Transport
from hubbub.transports.tcp import progress

logger = logging.getLogger(__name__)


class SocketTransport(Transport):
    """Writes into the socket that is under an asyncio transport.

    ``write`` is ``socket.send`` itself. It goes past the asyncio transport, whose own ``write`` takes a good
    part of the time of the system call it makes. Two rules make that safe:

    * The asyncio transport pauses this one as soon as it holds a single byte (its high-water mark is 0), so
      nothing overtakes these bytes. The rest that the socket does not take at once is handed to the asyncio
      transport, and so is a batch that the socket refused with an error: the asyncio transport knows how to
      handle errors.
    * Nothing is written once the connection is lost (:meth:`lost`), which the protocol learns before the
      asyncio transport closes the file descriptor.

    Where there is no plain socket (TLS, or not POSIX), it writes into the asyncio transport. For a client
    that has negotiated compression, ``write`` is a method that writes the compressed form.

    :param transport: of the accepted socket.
    :param websocket: sends the close frame.
    :param compress: whether the client has negotiated permessage-deflate, with the window of
        :mod:`hubbub.core.compression`.
    """

    __slots__ = ("_compress", "_is_paused", "_socket", "_stalled_at", "_transport", "_websocket")

    def __init__(self, transport: asyncio.Transport, websocket: WebSocket, *, compress: bool = False) -> None:
        super().__init__()
        self._transport = transport
        self._websocket = websocket
        self._compress = compress
        self._socket = _socket_of(transport)
        if self._socket is not None:
            transport.set_write_buffer_limits(high=0)
        self._is_paused = False
        # While paused: how much the asyncio transport held, and the peer had acknowledged, when it last took
        # something, and when that was.
        self._stalled_at = (0, 0, 0.0)

    def __del__(self) -> None:
        # Closing the file descriptor is left to the asyncio transport, also if this one was never lost.
        self._detach()

    def open(self, source: Source) -> None:
        super().open(source)
        if self._is_paused:
            source.hold()

    @property
    def write(self) -> Callable[[Any], int]:
        if self._socket is not None and not self._compress:
            return self._socket.send
        return self._write_form

    def write_rest(self, batch: Batch, taken: int) -> None:
        self._hand_over(memoryview(batch)[taken:])

    def close(self, code: int, reason: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._close(code, reason))

    def abort(self) -> None:
        self._transport.abort()

    def stalled(self, now: float) -> float:
        if not self._is_paused:
            return 0.0
        held, acknowledged, since = self._stalled_at
        holds, acknowledges = self._progress()
        if holds < held or acknowledges > acknowledged:
            self._stalled_at = (holds, acknowledges, now)
            return 0.0
        return now - since

    def release(self) -> None:
        super().release()
        self._detach()

    # For the protocol

    def pause(self) -> None:
        """Write nothing past the asyncio transport: it holds something."""
        self._is_paused = True
        self._stalled_at = (*self._progress(), asyncio.get_running_loop().time())
        if self._source is not None:
            self._source.hold()

    def resume(self) -> None:
        """Write the batches that wait, because the asyncio transport is empty."""
        self._is_paused = False
        source: Any = self._source
        while not self._is_paused and source is not None and (batch := source.take()) is not None:
            self._write_form(batch)  # which may pause again, or lose the connection
            source.sent(batch)
        if self._source is not None and not self._is_paused:
            self._source.flow()

    def flush(self) -> None:
        """Write the batches that wait to the asyncio transport, because it is about to be closed."""
        source: Any = self._source
        while source is not None and (batch := source.take()) is not None:
            self._transport.write(self._form(batch))
            source.sent(batch)

    # Internal

    def _progress(self) -> tuple[int, int]:
        """Return how many bytes the asyncio transport holds, and the peer has acknowledged.

        The kernel takes megabytes from the transport at once. A slow peer may need more time for them than it
        may take nothing at all.
        """
        peer = progress(self._transport.get_extra_info("socket"))
        return self._transport.get_write_buffer_size(), 0 if peer is None else peer.taken

    def _form(self, batch: WebSocketBatch) -> bytes:
        return batch.compressed if self._compress else batch

    def _write_form(self, batch: WebSocketBatch) -> int:
        """Write ``batch`` in the form that the client takes."""
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
        """Give the rest of a batch to the asyncio transport. As a rule, it pauses this transport."""
        self._transport.write(rest)
        if self._transport.is_closing():
            # A handler that sends without ever waiting would keep the event loop from notifying the protocol.
            self.lost()

    async def _close(self, code: int, reason: str) -> None:
        try:
            await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            logger.debug("Could not send a close frame, because the client has left: %r", exc)

    def _detach(self) -> None:
        if self._socket is not None:
            self._socket.detach()
            self._socket = None


def _socket_of(transport: asyncio.Transport) -> socket | None:
    """Return the socket under ``transport`` as an object that can send, if it is not encrypted."""
    inner = transport.get_extra_info("socket")
    is_encrypted = transport.get_extra_info("sslcontext") is not None
    if inner is None or is_encrypted or transport.is_closing() or os.name != "posix":
        return None
    outer = socket(inner.family, inner.type, inner.proto, fileno=inner.fileno())
    outer.setblocking(False)
    return outer
