"""The queued path: ASGI's ``websocket.send``, on any server."""

from __future__ import annotations

import asyncio
import logging
from asyncio import current_task
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from functools import partial
from inspect import iscoroutinefunction
from types import FunctionType
from typing import Any, cast

import starlette.websockets
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hubbub.core.frames import Batch
from hubbub.protocols.websocket import WebSocketBatch
from hubbub.transports.base import Transport

logger = logging.getLogger(__name__)

#: The scope extension by which a server offers a transport of its own: ``{"transport": make_transport}``,
#: called with the parameters of :func:`open_transport`.
EXTENSION = "hubbub"

# The key of the scope that says that a connection has, or has had, the socket.
_CLAIM = "hubbub.connection.connection"


def claim(websocket: WebSocket) -> None:
    """Take ``websocket`` for one connection, for good: the connection closes it when it ends.

    :raises RuntimeError: another connection has it, or has had it.
    """
    if websocket.scope.setdefault(_CLAIM, False):
        raise has_connection()
    websocket.scope[_CLAIM] = True


def has_connection() -> RuntimeError:
    """Return the error that refuses a second connection on one socket.

    Each of the two would write between the frames of the other, and close the socket of the other.
    """
    return RuntimeError(
        "Expected a socket without a connection, but this one has one, or had one that has closed it. Enter "
        "hub.connection(websocket) once for each socket, and subscribe that connection to all its channels."
    )


def open_transport(
    websocket: WebSocket, max_message_size: int, on_too_large: Callable[[], None] = lambda: None
) -> Transport:
    """Return the best transport that the server has for ``websocket``, which is accepted.

    :param max_message_size: bytes that a message from the client may have, for a server that checks them
        while they arrive.
    :param on_too_large: called when such a server has closed the connection because of a longer message.
    """
    if offered := websocket.scope.get("extensions", {}).get(EXTENSION):
        make: Callable[[WebSocket, int, Callable[[], None]], Transport] = offered["transport"]
        return make(websocket, max_message_size, on_too_large)
    return ASGITransport(websocket)


_CONNECTED = WebSocketState.CONNECTED

# In place of the future that a coroutine waits for, when the coroutine has ended.
_DONE = object()


class Suspended:
    """An awaitable that has run up to its first suspension, for a task to await the rest of it.

    :param steps: the iterator of its ``__await__``, which has been started.
    :param awaited: the future that it waits for.
    """

    __slots__ = ("_awaited", "_steps")

    def __init__(self, steps: Generator[Any, Any, None], awaited: object) -> None:
        self._steps = steps
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        # ``yield from``, entered in the middle.
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as exc:
                step = partial(self._steps.throw, exc)
            else:
                step = partial(self._steps.send, value)
            try:
                awaited = step()
            except StopIteration:
                return
            finally:
                # It may hold an exception, whose traceback holds this frame: a reference cycle.
                del step


class ASGITransport(Transport):
    """Writes over ``websocket.send``.

    ``send`` is a coroutine, but on most servers it never suspends while the client keeps up (uvicorn,
    hypercorn). So ``write`` runs it without a task, up to its end or its first suspension. A coroutine that
    is suspended is continued by a task; batches wait in the outbox meanwhile, and the task sends them and
    ends when the outbox is empty. On servers whose ``send`` always suspends (granian) this is one task for
    each burst.

    A coroutine that begins here may end in another task. So it begins in none, also where a handler's task
    writes, and in a context that this transport keeps: a copy of its connection's. Code in ``send`` that must
    run inside a task, such as a time limit in a middleware, raises when it is run like this. Then the
    connection's messages are left to tasks altogether.

    Everything leaves in the order in which it was written, the close frame last.
    """

    __slots__ = ("_close", "_context", "_loop", "_needs_task", "_send", "_sending_since", "_websocket")

    def __init__(self, websocket: WebSocket) -> None:
        super().__init__()
        self._websocket = websocket
        self._send = _send_of(websocket)
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._needs_task = False
        # The close frame that goes out once nothing else waits.
        self._close: tuple[int, str] | None = None
        # When the send that is under way began, by the loop's clock.
        self._sending_since: float | None = None

    @property
    def write(self) -> Callable[[Any], int]:
        return self._send_in_task if self._needs_task else self._send_now

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("Expected all of a batch to be taken by write().")

    def close(self, code: int, reason: str) -> None:
        self._close = (code, reason)
        if self._task is None:
            self._start(None)

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def stalled(self, now: float) -> float:
        return 0.0 if self._sending_since is None else now - self._sending_since

    # Without a task

    def _send_now(self, batch: WebSocketBatch) -> int:
        """Send ``batch`` as far as that needs no waiting."""
        # Given the loop, this takes a third of the time.
        if (task := current_task(self._loop)) is not None:
            # As event loops of other libraries do ("Extending asyncio" in Python's documentation).
            _leave_task(self._loop, task)
            try:
                return self._send_now(batch)
            finally:
                _enter_task(self._loop, task)
        send, websocket = self._send, self._websocket
        if send is None or websocket.application_state is not _CONNECTED:
            send = websocket.send
        for number, event in enumerate(batch.events):
            steps = send(event).__await__()
            try:
                # Half the time of steps.send(None), which ends with an exception.
                awaited = self._context.run(next, steps, _DONE)
                if awaited is _DONE:
                    continue
            except (WebSocketDisconnect, OSError, asyncio.CancelledError) as exc:
                self._fail(exc)
            except Exception as exc:
                steps.close()
                logger.debug(
                    "Could not send without a task; using tasks for this client from now on: %r", exc
                )
                self._needs_task = True
                self._begin(batch, number, None)
            else:
                self._begin(batch, number, Suspended(steps, awaited))
            break
        return len(batch)

    # In a task

    def _send_in_task(self, batch: WebSocketBatch) -> int:
        self._begin(batch, 0, None)
        return len(batch)

    def _begin(self, batch: WebSocketBatch, number: int, suspended: Suspended | None) -> None:
        """Have a task send ``batch`` from its message ``number`` on, whose sending may be suspended."""
        assert self._source is not None
        self._source.hold(batch)
        self._sending_since = self._loop.time()
        self._start(batch, number, suspended)

    def _start(
        self, batch: WebSocketBatch | None, number: int = 0, suspended: Suspended | None = None
    ) -> None:
        self._task = self._loop.create_task(self._run(batch, number, suspended), context=self._context)

    async def _run(self, batch: WebSocketBatch | None, number: int, suspended: Suspended | None) -> None:
        source = self._source
        assert source is not None
        try:
            # The outbox holds batches of this carrier only.
            while batch is not None or (batch := cast(WebSocketBatch | None, source.take())) is not None:
                try:
                    if suspended is not None:
                        await suspended
                        suspended = None
                        number += 1
                    for event in batch.events[number:]:
                        self._sending_since = self._loop.time()
                        await self._websocket.send(event)
                finally:
                    self._sending_since = None
                    source.sent(batch)
                batch, number = None, 0
            if self._close is not None:
                await self._websocket.close(*self._close)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            # The client has left, or the server has closed the socket by itself (a failed ping, a protocol
            # error) and reports that by refusing to send. The handler learns it when it receives.
            self._fail(exc)
        except asyncio.CancelledError:
            self.lost()
            raise
        except Exception:
            self.lost()
            logger.exception("Could not send to a client, because the server's send failed.")
        # Nothing was awaited since the outbox was found empty.
        self._task = None
        if self._close is not None:
            # Its close frame is out.
            self.lost()
        else:
            source.flow()

    def _fail(self, exc: BaseException) -> None:
        logger.debug("Could not send to a client, because it has left: %r", exc)
        if isinstance(exc, OSError):
            # As Starlette's own send does.
            self._websocket.application_state = WebSocketState.DISCONNECTED
        self.lost()


def _send_of(websocket: WebSocket) -> Callable[[Any], Awaitable[None]] | None:
    """Return the ``send`` that Starlette's ``WebSocket.send`` calls after it has checked state and message.

    The check takes longer than all else here. An object whose ``send`` is not Starlette's has none; tracing
    libraries replace it in a class of the application, in the object, or in Starlette's class itself.
    """
    method = type(websocket).send
    is_original = type(method) is FunctionType and method.__globals__ is vars(starlette.websockets)
    if is_original and "send" not in vars(websocket):
        send = getattr(websocket, "_send", None)
        # Another callable may raise before it returns an awaitable, or return one that cannot be continued.
        if iscoroutinefunction(send):
            return send
    return None
