"""Endpoints: the functions that FastAPI calls for the doors of a hub.

FastAPI keeps each function that it has analysed, in a cache for all applications. So these functions do not
refer to the hub: a hub that is not used any more is freed. The router of the hub holds its doors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from weakref import ref

from fastapi import Request, WebSocket
from starlette.responses import Response


class Door(Protocol):
    """A door for HTTP requests."""

    async def endpoint(self, request: Request, channel: str) -> Response:
        """Answer one request for a channel."""


class SocketDoor(Protocol):
    """A door for sockets."""

    async def endpoint(self, websocket: WebSocket, channel: str) -> None:
        """Serve one socket, from the handshake to the end."""


def http_endpoint(door: Door) -> Callable[[Request, str], Awaitable[Response]]:
    """Return the endpoint of ``door``."""
    found = ref(door)

    async def channel_door(request: Request, channel: str) -> Response:
        present = found()
        assert present is not None
        return await present.endpoint(request, channel)

    return channel_door


def websocket_endpoint(door: SocketDoor) -> Callable[[WebSocket, str], Awaitable[None]]:
    """Return the endpoint of ``door``."""
    found = ref(door)

    async def channel_door(websocket: WebSocket, channel: str) -> None:
        present = found()
        assert present is not None
        await present.endpoint(websocket, channel)

    return channel_door
