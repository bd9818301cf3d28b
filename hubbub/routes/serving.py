"""The parts of a hub that its doors use, and the entrance that all doors have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.types import Receive, Send
from starlette.websockets import WebSocket

from hubbub.channels.access import Access
from hubbub.channels.current import Client
from hubbub.connection.door import DoorConnection
from hubbub.connection.limits import Limits
from hubbub.connection.stream import Stream
from hubbub.core.publication import Position
from hubbub.node.node import Node
from hubbub.node.slots import Slot
from hubbub.security.admission import Admission
from hubbub.types import Refusal

#: The path of all doors, below the prefix of ``include_router``.
PATH = "/channels/{channel:path}"

OpenConnection = Callable[[WebSocket, str | None, str | None, Slot], DoorConnection]
OpenStream = Callable[[Receive, Send, str | None, Mapping[str, str]], Stream]


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts of a hub that its doors use.

    :param start: returns the node and the handlers of the running hub, and starts it if necessary.
    :param open_connection: returns a connection for a socket, its user, its subprotocol and its slot.
    :param open_stream: returns an event stream for ``receive`` and ``send`` of ASGI, a user, and headers.
    :param position: returns the position of a channel in the engine.
    :param admission: the pages and hosts that may connect.
    :param limits: of a connection.
    """

    start: Callable[[], Awaitable[tuple[Node, Access]]]
    open_connection: OpenConnection
    open_stream: OpenStream
    position: Callable[[str], Awaitable[Position]]
    admission: Admission
    limits: Limits


class Entrance:
    """The entrance of one client, up to its identity.

    In this order: page and host; the limit of the process; ``on_connect``; the limit of the user. A request
    that opens no connection takes no slot. ::

        with Entrance(serving, client) as entrance:
            access = await entrance.enter()

    :param serving: the parts of the hub.
    :param client: the client, which gets its identity here.
    :param opens_connection: whether the client takes a slot, which it gives back at the end of the block.
    """

    __slots__ = ("_client", "_opens_connection", "_serving", "_stack", "node", "rechecks", "slot")

    def __init__(self, serving: Serving, client: Client, *, opens_connection: bool = True) -> None:
        self._serving = serving
        self._client = client
        self._opens_connection = opens_connection
        self._stack = ExitStack()
        #: The node, once the client has entered.
        self.node: Node | None = None
        #: How many rechecks there were before the permissions of this client were checked.
        self.rechecks = 0
        #: The slot of the client; ``None`` before, and for a client that opens no connection.
        self.slot: Slot | None = None

    def __enter__(self) -> Entrance:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    async def enter(self) -> Access:
        """Admit the client and identify it.

        :return: the handlers of the hub.
        :raises HTTPException: the client is refused, by Hubbub.
        """
        self.node, access = await self._serving.start()
        client = self._client
        self._serving.admission.check_door(client.http, self.node.refusals)
        if self._opens_connection:
            self.slot = self.node.admit()
            self._stack.callback(self.slot.release)
        self.rechecks = self.node.rechecks.count
        client.identity = await access.identify(client)
        if self.slot is not None:
            self.slot.claim_user(client.identity.user)
        return access

    def count_reason(self, reason: Refusal) -> None:
        """Count a refusal for ``reason``."""
        if self.node is not None:
            self.node.refusals.count(reason)

    def count(self, code: int) -> None:
        """Count a refusal by a status, an error code or a close code."""
        if self.node is not None:
            self.node.refusals.count_code(code)
