"""The way out of a WebSocket: the server's own where it has one, or else ASGI's ``websocket.send``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.core.outbox import Outbox
from hubbub.transports.writer import Writer

logger = logging.getLogger("hubbub.websocket")

#: The scope extension by which a server offers a writer of its own: ``{"writer": make_writer}``, called with
#: the parameters of :func:`open_writer`.
EXTENSION = "hubbub"

# The key of the scope that says that a connection has, or has had, the socket.
_CLAIM = "hubbub.connection.connection"


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


# In place of what a coroutine waits for, if it has come to its end.
_DONE = object()


class Suspended:
    """A coroutine that has been run up to its first suspension, for a task to await the rest of it.

    :param coroutine: that has been started.
    :param awaited: the future that the coroutine waits for.
    """

    __slots__ = ("_awaited", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, None], awaited: object) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        # What ``yield from`` does, entered in the middle.
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as exc:
                step = partial(self._coroutine.throw, exc)
            else:
                step = partial(self._coroutine.send, value)
            try:
                awaited = step()
            except StopIteration:
                return


class QueuedWriter(Writer):
    """Writes over ``websocket.send``, on any server.

    ``send`` is a coroutine, but on most servers it never suspends while the client keeps up (uvicorn,
    hypercorn). So ``write`` runs it itself, without a task, up to its end or its first suspension. What
    has been suspended is continued by a task; publications wait in the outbox meanwhile, and the task sends
    them and ends when the outbox is empty. On servers whose ``send`` always suspends (granian) this is one
    task for each burst.

    What is begun here may end in another task. So it is begun in none, also where a handler's task writes,
    and in a context that this writer keeps: a copy of its connection's. Code in ``send`` that must run inside
    a task, such as a time limit in a middleware, raises when it is run like this. Then the connection's
    messages are left to tasks altogether.

    Everything leaves in the order in which it was written, the close frame last.
    """

    __slots__ = ("_close", "_context", "_flow", "_sending_since", "_task")

    def __init__(
        self, connection_id: str, websocket: WebSocket, outbox: Outbox, on_end: Callable[[int, str], None]
    ) -> None:
        super().__init__(connection_id, websocket, outbox, on_end)
        # What ``write`` is while no task is sending.
        self._flow = self._send_now
        self.write = self._flow
        self._context = copy_context()
        # Sends what waits. There is one only while something does.
        self._task: asyncio.Task[None] | None = None
        # The close frame that is to go out once nothing else waits.
        self._close: tuple[int, str] | None = None
        # When the send that is under way began, on the loop's clock.
        self._sending_since: float | None = None

    async def ended(self, timeout: float) -> None:
        task = self._task
        try:
            if task is not None:
                await asyncio.wait([task], timeout=timeout)
        finally:
            self.cut()
            if task is not None and task.cancel():
                await asyncio.wait([task], timeout=1.0)

    def stalled(self, now: float) -> float:
        return 0.0 if self._sending_since is None else now - self._sending_since

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("Expected all of a batch to be taken by write().")

    # Without a task

    def _send_now(self, batch: Batch) -> int:
        """Send ``batch`` as far as that needs no waiting."""
        task = asyncio.current_task()
        if task is None:
            return self._send_outside_tasks(batch)
        # As event loops of other libraries do ("Extending asyncio" in Python's documentation).
        asyncio.tasks._leave_task(self._loop, task)
        try:
            return self._send_outside_tasks(batch)
        finally:
            asyncio.tasks._enter_task(self._loop, task)

    def _send_outside_tasks(self, batch: Batch) -> int:
        for number, frame in enumerate(batch.frames):
            sending = self._websocket.send(frame.message)
            try:
                # Half the time of sending.send(None), which ends with an exception.
                awaited = self._context.run(next, sending.__await__(), _DONE)
                if awaited is _DONE:
                    continue
            except (WebSocketDisconnect, OSError, asyncio.CancelledError) as exc:
                logger.debug("Could not send to connection %s: %r", self.id, exc)
                self.cut()
            except Exception as exc:
                sending.close()
                logger.debug("Connection %s is sent to in tasks from now on: %r", self.id, exc)
                self._flow = self._send_in_task
                self._begin(batch, number, None)
            else:
                self._begin(batch, number, Suspended(sending, awaited))
            break
        return len(batch)

    # In a task

    def _send_in_task(self, batch: Batch) -> int:
        self._begin(batch, 0, None)
        return len(batch)

    def _begin(self, batch: Batch, number: int, suspended: Suspended | None) -> None:
        """Have a task send ``batch`` from its frame ``number`` on, whose sending may be suspended."""
        # The outbox is empty, so it takes any batch. What is being sent counts until it is sent.
        self._outbox.push(batch)
        self._outbox.take()
        self._sending_since = self._loop.time()
        self.write = self._hold
        self._start(batch, number, suspended)

    def _end_after_backlog(self, close: tuple[int, str] | None) -> None:
        self._close = close
        if self._task is None and close is not None:
            self._start(None)

    def _start(self, batch: Batch | None, number: int = 0, suspended: Suspended | None = None) -> None:
        self._task = self._loop.create_task(self._run(batch, number, suspended), context=self._context)

    async def _run(self, batch: Batch | None, number: int, suspended: Suspended | None) -> None:
        try:
            while batch := batch or self._outbox.take():
                try:
                    if suspended is not None:
                        await suspended
                        suspended = None
                        number += 1
                    for frame in batch.frames[number:]:
                        self._sending_since = self._loop.time()
                        await self._websocket.send(frame.message)
                finally:
                    self._sending_since = None
                    self._outbox.sent(batch)
                self._has_changed()
                batch, number = None, 0
            if self._close is not None:
                await self._websocket.close(*self._close)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            # The client is gone, or the server has closed the socket by itself (a failed ping, a protocol
            # error) and says so by refusing to send. The handler learns it from what it receives.
            logger.debug("Could not send to connection %s: %r", self.id, exc)
            self.cut()
        except asyncio.CancelledError:
            self.cut()
            raise
        except Exception:
            self.cut()
            logger.exception("The server could not send to connection %s.", self.id)
        # Nothing was awaited since the outbox was found empty.
        self._task = None
        if self._ending:
            self.cut()
        else:
            self.write = self._flow
