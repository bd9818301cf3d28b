"""Closing: the close code for an exception that leaves a connection's block, and FastAPI's part in it.

FastAPI handles a ``WebSocketException`` by closing the socket with its code and reason. A connection does not
leave the close frame to that: messages that wait for the client come first, for a limited time; on some
servers, closing fails if the client has vanished, and does not return if the client reads nothing; and code
around the block may catch the exception. So the connection closes the socket itself and raises
:class:`Refused`, for which it gives the application's exception handling a handler that does nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import fastapi
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.codes import CloseCode, clip_reason, is_sendable
from hubbub.exceptions import InvalidMessage, InvalidPosition

#: Middleware around an application in which its exception handling is looked for.
MAX_LAYERS = 100


class Refused(fastapi.WebSocketException):
    """A client was refused, and its socket has been closed with this code and reason."""


def close_for(exc: BaseException) -> fastapi.WebSocketException | None:
    """Return the close code and reason for ``exc``; ``None`` if ``exc`` is an error of the server.

    =======================  ==============================================================
    ``WebSocketException``   its code, or 1011 where that may not be sent
    ``InvalidMessage``       its code: 1003, or 1007
    ``InvalidPosition``      1008
    ``HTTPException``        1008 for a status of 4xx, 1011 for any other; an open socket
                             has no status any more, so its detail becomes the reason
    =======================  ==============================================================

    Reasons are cut to the bytes that fit into a close frame.
    """
    match exc:
        case WebSocketException():
            code = exc.code if is_sendable(exc.code) else CloseCode.INTERNAL_ERROR
            return fastapi.WebSocketException(code, clip_reason(exc.reason))
        case InvalidMessage():
            return fastapi.WebSocketException(exc.code, clip_reason(str(exc)))
        case InvalidPosition():
            return fastapi.WebSocketException(CloseCode.POLICY_VIOLATION, clip_reason(str(exc)))
        case HTTPException():
            is_about_the_client = 400 <= exc.status_code < 500
            code = CloseCode.POLICY_VIOLATION if is_about_the_client else CloseCode.INTERNAL_ERROR
            return fastapi.WebSocketException(code, clip_reason(str(exc.detail)))
    return None


def is_disconnect(exc: BaseException) -> bool:
    """Whether ``exc`` only says that the client has left; task groups wrap it."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(WebSocketDisconnect)[1] is None
    return isinstance(exc, WebSocketDisconnect)


def has_websocket_handler(websocket: WebSocket, exc: BaseException) -> bool:
    """Whether the application has an exception handler for ``exc`` that can deal with an open socket.

    A handler for HTTP returns a response, which an open socket cannot be sent any more.
    """
    handlers = getattr(websocket.scope.get("app"), "exception_handlers", {})
    for cls in type(exc).__mro__:
        # Starlette runs handlers for Exception itself for HTTP only (starlette.middleware.errors).
        if cls is not Exception and cls in handlers:
            return issubclass(cls, WebSocketException) or takes_websocket(handlers[cls])
    return False


def takes_websocket(handler: Callable[..., Any]) -> bool:
    try:
        hints = get_type_hints(handler)
        first = next(iter(inspect.signature(handler).parameters))
    except (NameError, TypeError, ValueError, StopIteration):
        return False
    hint = hints.get(first)
    return any(
        isinstance(cls, type) and issubclass(cls, HTTPConnection) and not issubclass(cls, Request)
        for cls in (get_args(hint) or (hint,))
    )


def leave_closed(websocket: WebSocket) -> bool:
    """Have the application leave a socket closed when :class:`Refused` is raised.

    Its exception handling gets a handler for that class, which does nothing.

    :return: ``False`` if a middleware hides the exception handling, which would close the socket again: that
        is an error.
    """
    app = websocket.scope.get("app")
    if not isinstance(app, Starlette):
        # Only an application closes sockets.
        return True
    is_found = False
    # Each middleware has the next one, and at last the router, in its attribute ``app``. By convention only:
    # that of a middleware may lead back, and following it without a limit would stop the event loop.
    layer: Any = app.middleware_stack
    for _ in range(MAX_LAYERS):
        if layer is None or layer is app.router:
            break
        if isinstance(layer, ExceptionMiddleware):
            layer.add_exception_handler(Refused, _is_closed)  # once more has no effect
            is_found = True
        layer = getattr(layer, "app", None)
    return is_found


async def _is_closed(websocket: WebSocket, exc: Exception) -> None:
    """Handle :class:`Refused` by doing nothing."""
