"""The application's own exception handlers, for exceptions on an open connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from hubbub.connection.closing import takes_websocket

Handler = Callable[[Any, Exception], Awaitable[Any]]

#: Handlers that FastAPI adds to each app. They answer with a response or close the socket.
_OF_FASTAPI = (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)


def find_handler(http: HTTPConnection, exc: Exception) -> Handler | None:
    """Return the application's handler for ``exc`` that can deal with an open socket.

    As in Starlette, one for the status comes first, then one for the most specific class. Handlers for
    ``Exception`` itself are for HTTP only.
    """
    handlers = getattr(http.scope.get("app"), "exception_handlers", {})
    keys: list[Any] = [exc.status_code] if isinstance(exc, HTTPException) else []
    keys += type(exc).__mro__
    for key in keys:
        handler: Handler | None = handlers.get(key)
        if key is Exception:
            return None
        if handler is not None and handler not in _OF_FASTAPI:
            return handler if takes_websocket(handler) else None
    return None
