"""Middleware between an endpoint and its server, found in the endpoint's ``receive`` and ``send``."""

from __future__ import annotations

from types import FunctionType
from typing import Any

# Packages whose wrappers inspect only HTTP responses, and pass on the messages of a WebSocket unchanged.
# Starlette wraps the ``send`` of every endpoint.
_TRANSPARENT = ("fastapi", "starlette")


def unwrap(call: Any, name: str) -> Any:
    """Remove the wrappers of Starlette and FastAPI from an endpoint's ``receive`` or ``send``.

    :param call: the endpoint's ``receive`` or ``send``.
    :param name: ``"receive"`` or ``"send"``: the variable under which a wrapper holds the function it wraps.
    :return: the server's own function, or that of a middleware which sees all messages.
    """
    while isinstance(call, FunctionType) and str(call.__module__).partition(".")[0] in _TRANSPARENT:
        cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=True))
        if name not in cells:
            break
        call = cells[name].cell_contents
    return call


def name_of(call: Any) -> str:
    """Return the qualified name of the function or class of ``call``, for a log line."""
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}".replace(".<locals>", "")
