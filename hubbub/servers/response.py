"""The connection to the server under a streaming response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hubbub.servers.middleware import unwrap


def abort_response(receive: Callable[..., Any]) -> None:
    """Drop the connection of a client that does not read its response, with the data that wait for it.

    ASGI has no event for this. After a response that is not complete, uvicorn closes the connection, which
    waits for such a client for as long as the kernel does. Other servers are left alone.

    :param receive: of the request.
    """
    cycle = getattr(unwrap(receive, "receive"), "__self__", None)
    abort = getattr(getattr(cycle, "transport", None), "abort", None)
    if callable(abort):
        abort()
