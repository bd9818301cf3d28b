"""The way out of a WebSocket: the server's own where it has one, or else ASGI's ``websocket.send``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.websocket")

#: The scope extension by which a server offers a writer of its own: ``{"writer": make_writer}``, called with
#: the parameters of :func:`open_writer`.
EXTENSION = "hubbub"

# The key of the scope that says that a connection has, or has had, the socket.
_CLAIM = "hubbub.connection"


def claim(websocket: WebSocket) -> None:
    """Take ``websocket`` for one connection, for good: it closes the socket when it ends.

    :raises RuntimeError: another connection has it, or has had it.
    """
    if websocket.scope.setdefault(_CLAIM, False):
        raise has_connection()
    websocket.scope[_CLAIM] = True


def has_connection() -> RuntimeError:
    """What a second connection on one socket is refused with. Each of the two would write into what the other
    writes, and close it."""
    return RuntimeError(
        "Expected a socket without a connection, but this one has one, or had one that has closed it. Enter "
        "hub.connection(websocket) once for each socket, and subscribe that connection to all its channels."
    )


def open_writer(
    connection_id: str,
    websocket: WebSocket,
    outbox: Outbox,
    on_end: Callable[[int, str], None],
    max_message_size: int,
) -> Writer:
    """The best way out that the server has for ``websocket``.

    :param max_message_size: bytes that a message from the client may have, for a server that looks at them
        while they arrive.
    """
    if offered := websocket.scope.get("extensions", {}).get(EXTENSION):
        make: Callable[..., Writer] = offered["writer"]
        return make(connection_id, websocket, outbox, on_end, max_message_size)
    return QueuedWriter(connection_id, websocket, outbox, on_end)


class QueuedWriter(Writer):
    """An outbox, and one task that empties it into the socket.

    The task is started by the first write. It is the only one that sends on the socket after accept, so
    that everything leaves in the order in which it was written, the close frame last.
    """

    __slots__ = ("_close", "_sending_since", "_task", "_work")

    def __init__(
        self, connection_id: str, websocket: WebSocket, outbox: Outbox, on_end: Callable[[int, str], None]
    ) -> None:
        super().__init__(connection_id, websocket, outbox, on_end)
        self.write = self._queue
        self._task: asyncio.Task[None] | None = None
        # Set while there is something for the task to do; the task clears it before it looks.
        self._work = asyncio.Event()
        # The close frame that is to go out once nothing else waits.
        self._close: tuple[int, str] | None = None
        # When the send that is under way began, on the loop's clock.
        self._sending_since: float | None = None

    async def ended(self, timeout: float) -> None:
        try:
            if self._task is not None:
                await asyncio.wait([self._task], timeout=timeout)
        finally:
            self.cut()
            if self._task is not None and self._task.cancel():
                await asyncio.wait([self._task], timeout=1.0)

    def stalled(self, now: float) -> float:
        return 0.0 if self._sending_since is None else now - self._sending_since

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("A queue takes all of a batch.")

    def _queue(self, batch: Batch) -> int:
        taken = self._hold(batch)
        self._wake()
        return taken

    def _end_after_backlog(self, close: tuple[int, str] | None) -> None:
        self._close = close
        if close is not None or self._task is not None:
            self._wake()

    def _wake(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        self._work.set()

    async def _run(self) -> None:
        try:
            while True:
                self._work.clear()
                while batch := self._outbox.take():
                    await self._send(batch)
                if self._close is not None:
                    await self._websocket.close(*self._close)
                if self._ending:
                    return
                await self._work.wait()
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            # The client is gone, or the server has closed the socket by itself (a failed ping, a protocol
            # error) and says so by refusing to send. The handler learns it from what it receives.
            logger.debug("The client is gone: %r", exc)
        except Exception:
            logger.exception("The server could not send to a client.")
        finally:
            self.cut()

    async def _send(self, batch: Batch) -> None:
        try:
            for frame in batch.frames:
                self._sending_since = self._loop.time()
                await self._websocket.send(frame.message)
        finally:
            self._sending_since = None
            self._outbox.sent(batch)
        self._has_changed()
