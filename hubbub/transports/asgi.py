"""The queued path: ASGI's ``websocket.send``, on any server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from types import FunctionType
from typing import Any

import starlette.websockets
from starlette.websockets import WebSocket, WebSocketState

from hubbub.protocols.websocket import WebSocketBatch
from hubbub.transports.base import Transport
from hubbub.transports.sending import SendingTransport

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


class ASGITransport(SendingTransport):
    """Writes over ``websocket.send``."""

    __slots__ = ("_send", "_websocket")

    def __init__(self, websocket: WebSocket) -> None:
        super().__init__()
        self._websocket = websocket
        self._send = _send_of(websocket)

    def _events_of(self, batch: WebSocketBatch) -> Sequence[dict[str, Any]]:
        return batch.events

    def _send_of_now(self) -> Callable[[Any], Awaitable[None]]:
        send, websocket = self._send, self._websocket
        if send is None or websocket.application_state is not _CONNECTED:
            return websocket.send
        return send

    async def _send_event(self, event: dict[str, Any]) -> None:
        await self._websocket.send(event)

    async def _send_close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)

    def _fail(self, exc: BaseException) -> None:
        if isinstance(exc, OSError):
            # As Starlette's own send does.
            self._websocket.application_state = WebSocketState.DISCONNECTED
        super()._fail(exc)


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
