"""The way out of a WebSocket: the server's own where it has one, or else ASGI's ``websocket.send``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.codes import CloseCode
from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.websocket")

#: The scope extension by which a server offers a writer of its own: ``{"writer": make_writer}``, called with
#: the parameters of :class:`QueuedWriter`.
EXTENSION = "hubbub"


def open_writer(
    connection_id: str, websocket: WebSocket, outbox: Outbox, on_end: Callable[[int, str], None]
) -> Writer:
    """The best way out that the server has for ``websocket``."""
    offered = websocket.scope.get("extensions", {}).get(EXTENSION)
    make: Callable[..., Writer] = offered["writer"] if offered else QueuedWriter
    return make(connection_id, websocket, outbox, on_end)


class QueuedWriter:
    """An outbox, and one task that empties it into the socket.

    The task is started by the first write. It is the only one that sends on the socket after accept, so
    that everything leaves in the order in which it was written, the close frame last.

    :param connection_id: the id of the connection that is written to.
    :param websocket: an accepted socket.
    :param outbox: where batches wait while the socket takes no more.
    :param on_end: called once, when the writer by itself decided to let a slow client go.
    """

    def __init__(
        self, connection_id: str, websocket: WebSocket, outbox: Outbox, on_end: Callable[[int, str], None]
    ) -> None:
        self.id = connection_id
        self._websocket = websocket
        self._outbox = outbox
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        # Set while there is something for the task to do; the task clears it before it looks.
        self._work = asyncio.Event()
        # Set while a direct send may come in.
        self._has_room = asyncio.Event()
        self._has_room.set()
        # Whether end() was called, and the close frame that is to go out once nothing else waits.
        self._ending = False
        self._close: tuple[int, str] | None = None
        self._gone = False
        # When the send that is under way began, on the loop's clock.
        self._sending_since: float | None = None

    @property
    def backlog(self) -> int:
        return self._outbox.size

    @property
    def dropped(self) -> int:
        return self._outbox.dropped

    @property
    def is_gone(self) -> bool:
        return self._gone

    def write(self, batch: Batch) -> None:
        if self._gone or self._ending:
            return
        if not self._outbox.push(batch):
            reason = f"slow: more than {self._outbox.limit} bytes waiting"
            self.end(CloseCode.SLOW, reason)
            self._on_end(CloseCode.SLOW, reason)
            return
        if not self._outbox.has_room:
            self._has_room.clear()
        self._wake()

    async def room(self) -> None:
        # Several senders may have waited, and the first of them may have taken the room.
        while not self._has_room.is_set():
            await self._has_room.wait()

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        if discard:
            self._outbox.clear()
        if not self._ending:
            self._ending = True
            self._close = None if code is None else (code, reason)
            self._wake()
        self._has_room.set()

    async def ended(self, timeout: float) -> None:
        try:
            if self._task is not None:
                await asyncio.wait([self._task], timeout=timeout)
        finally:
            self._lost()
            if self._task is not None and self._task.cancel():
                await asyncio.wait([self._task], timeout=1.0)

    def stalled(self, now: float) -> float:
        return 0.0 if self._sending_since is None else now - self._sending_since

    def _wake(self) -> None:
        if self._task is None and not self._gone and (self._close is not None or len(self._outbox)):
            self._task = self._loop.create_task(self._run())
        self._work.set()

    async def _run(self) -> None:
        try:
            while True:
                self._work.clear()
                while batch := self._outbox.take():
                    await self._send(batch)
                if self._ending:
                    if self._close is not None:
                        await self._websocket.close(*self._close)
                    return
                await self._work.wait()
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            # The client is gone, or the server has closed the socket by itself (a failed ping, a protocol
            # error) and says so by refusing to send. The handler learns it from what it receives.
            logger.debug("The client is gone: %r", exc)
        except Exception:
            logger.exception("The server could not send to a client.")
        finally:
            self._lost()

    async def _send(self, batch: Batch) -> None:
        try:
            for frame in batch.frames:
                self._sending_since = self._loop.time()
                await self._websocket.send(frame.message)
        finally:
            self._sending_since = None
            self._outbox.sent(batch)
        if self._outbox.has_room:
            self._has_room.set()

    def _lost(self) -> None:
        self._gone = True
        self._outbox.clear()
        self._has_room.set()
