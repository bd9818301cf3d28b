"""Endings: what a client is told when its handler's block is left by an exception."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.codes import CloseCode, clip_reason, is_sendable
from hubbub.exceptions import InvalidMessage, InvalidPosition


def close_for(exc: BaseException) -> WebSocketException | None:
    """``exc`` as the exception that closes a socket, if it is about this client and no failure of the server.

    An ``HTTPException`` can only be answered before the socket is accepted; after that, its detail becomes
    the reason of a close frame.
    """
    match exc:
        case WebSocketException():
            code = exc.code if is_sendable(exc.code) else CloseCode.INTERNAL_ERROR
            return WebSocketException(code, clip_reason(exc.reason))
        case InvalidMessage():
            return WebSocketException(exc.code, clip_reason(str(exc)))
        case InvalidPosition():
            return WebSocketException(CloseCode.POLICY_VIOLATION, clip_reason(str(exc)))
        case HTTPException():
            is_about_the_client = 400 <= exc.status_code < 500
            code = CloseCode.POLICY_VIOLATION if is_about_the_client else CloseCode.INTERNAL_ERROR
            return WebSocketException(code, clip_reason(str(exc.detail)))
    return None


def is_disconnect(exc: BaseException) -> bool:
    """Whether ``exc`` says that the client has gone, and nothing else; task groups wrap it."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(WebSocketDisconnect)[1] is None
    return isinstance(exc, WebSocketDisconnect)


def has_websocket_handler(websocket: WebSocket, exc: BaseException) -> bool:
    """Whether the application has an exception handler for ``exc`` that can deal with an open socket.

    One made for HTTP returns a response, which a socket that is open cannot be sent any more.
    """
    handlers = getattr(websocket.scope.get("app"), "exception_handlers", {})
    for cls in type(exc).__mro__:
        # Handlers for Exception itself are run for HTTP only (starlette.middleware.errors).
        if cls is not Exception and cls in handlers:
            return _takes_websocket(handlers[cls])
    return False


def _takes_websocket(handler: Callable[..., Any]) -> bool:
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
