"""The parts of a hub that its doors use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.types import Receive, Send
from starlette.websockets import WebSocket

from hubbub.channels.access import Access
from hubbub.connection.door import DoorConnection
from hubbub.connection.stream import Stream
from hubbub.core.publication import Position
from hubbub.node.node import Node
from hubbub.security.admission import Admission

#: The path of all doors, below the prefix of ``include_router``.
PATH = "/channels/{channel:path}"


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts of a hub that its doors use.

    :param access: returns the handlers of the running hub, and starts it if necessary.
    :param open_connection: returns a connection for a socket, its user and its subprotocol.
    :param node: returns the node of the running hub.
    :param open_stream: returns an event stream for ``receive`` and ``send`` of ASGI, a user, and headers.
    :param position: returns the position of a channel in the engine.
    :param admission: the pages and hosts that may connect.
    """

    access: Callable[[], Awaitable[Access]]
    open_connection: Callable[[WebSocket, str | None, str | None], DoorConnection]
    node: Callable[[], Node]
    open_stream: Callable[[Receive, Send, str | None, Mapping[str, str]], Stream]
    position: Callable[[str], Awaitable[Position]]
    admission: Admission
