"""Middleware between an endpoint and its server, as far as it can be seen from ``receive`` and ``send``."""

from __future__ import annotations

from types import FunctionType
from typing import Any

#: Packages whose wrappers look at HTTP responses only, and pass on what a WebSocket sends and receives.
#: Starlette wraps the ``send`` of every endpoint.
_TRANSPARENT = ("fastapi", "starlette")


def unwrap(call: Any, name: str) -> Any:
    """``call`` without the wrappers that Starlette and FastAPI have put around it: the server's own, or that
    of a middleware, which sees all messages.

    :param call: an endpoint's ``receive`` or ``send``.
    :param name: which of them, which is how the wrappers call what they wrap.
    """
    while isinstance(call, FunctionType) and str(call.__module__).partition(".")[0] in _TRANSPARENT:
        cells = dict(zip(call.__code__.co_freevars, call.__closure__ or (), strict=True))
        if name not in cells:
            break
        call = cells[name].cell_contents
    return call


def name_of(call: Any) -> str:
    """The function or class that ``call`` is from, for a log line."""
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}".replace(".<locals>", "")
