"""The present call: its client, channel and message, also for dependencies.

FastAPI fills parameters of its own classes by annotation. Classes of others need a ``Depends``, so
dependencies ask for :data:`CurrentIdentity`, :data:`CurrentConnection` and :data:`CurrentChannel`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Annotated, Any, TypeAlias

from fastapi import BackgroundTasks, Depends
from starlette.requests import HTTPConnection
from starlette.types import Send

from hubbub.channels.channel import Channel
from hubbub.connection.connection import Connection
from hubbub.types import Identity

# The key of the scope under which a call of this module finds itself.
CALL = "hubbub.call"

# Keys of a request's scope that belong to the route which has received it.
_OF_THE_ROUTE = ("fastapi", "starlette.exception_handlers")


class Client:
    """A client as handlers see it: of an open connection, or of one request.

    :param http: its request, or its socket.
    """

    __slots__ = ("connection", "http", "identity", "paths", "scope", "send")

    def __init__(self, http: HTTPConnection) -> None:
        self.http = http
        #: From ``on_connect``.
        self.identity = Identity()
        #: ``None`` for a client without a socket.
        self.connection: Connection | None = None
        #: Takes the messages that dependencies send over a ``WebSocket``.
        self.send: Send = _send_nothing
        # Shared by all calls, so that ``websocket.state`` lasts as long as the client.
        http.scope.setdefault("state", {})
        self.scope = base_scope(http.scope)
        #: The values of path parameters, by handler: they stay the same as long as the client.
        self.paths: dict[tuple[object, str], Mapping[str, Any]] = {}


def base_scope(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return the scope of a socket for calls: without the parts that belong to the route of the door.

    With the exception handlers of the app, FastAPI would answer an ``HTTPException`` of a handler with a
    response, on a socket that is open.
    """
    base = {
        key: value
        for key, value in scope.items()
        if key not in _OF_THE_ROUTE and not key.startswith("fastapi_")
    }
    # All doors are sockets for FastAPI: a handler may ask for a WebSocket, and not for a Request.
    base["type"] = "websocket"
    base.setdefault("subprotocols", [])
    return base


class Call:
    """One call of a handler.

    :param client: the client for which the handler is called.
    :param channel: the channel; ``None`` for an rpc and for ``on_connect``.
    :param message: the validated message.
    """

    __slots__ = ("background", "channel", "client", "is_finished", "message", "result")

    def __init__(self, client: Client, channel: Channel | None = None, message: Any = None) -> None:
        self.client = client
        self.channel = channel
        self.message = message
        self.result: Any = None
        #: Whether the handler has returned, and its result is encoded.
        self.is_finished = False
        #: Tasks to run when all else is done.
        self.background: BackgroundTasks | None = None

    @property
    def http(self) -> HTTPConnection:
        return self.client.http

    @property
    def identity(self) -> Identity:
        return self.client.identity

    @property
    def connection(self) -> Connection | None:
        return self.client.connection


#: The call that is being made in this context.
present: ContextVar[Call] = ContextVar("hubbub_call")


class Overrides:
    """The ``dependency_overrides`` of the application that serves the present call."""

    @property
    def dependency_overrides(self) -> Mapping[Any, Any]:
        app = present.get().http.scope.get("app")
        overrides: Mapping[Any, Any] = getattr(app, "dependency_overrides", {})
        return overrides


async def _identity(http: HTTPConnection) -> Identity:
    return _call(http).identity


async def _connection(http: HTTPConnection) -> Connection:
    connection = _call(http).connection
    if connection is None:
        raise RuntimeError("Expected a connection, but this call has none: it was made without a WebSocket.")
    return connection


async def _channel(http: HTTPConnection) -> Channel:
    channel = _call(http).channel
    if channel is None:
        raise RuntimeError("Expected a channel, but this call is for none.")
    return channel


def _call(http: HTTPConnection) -> Call:
    call = http.scope.get(CALL)
    if not isinstance(call, Call):
        raise RuntimeError(
            "Expected to be a dependency of a declared channel or of an rpc, but this is another route. Use "
            "CurrentIdentity, CurrentConnection and CurrentChannel in Hubbub's handlers only."
        )
    return call


#: The client's :class:`~hubbub.Identity`, for dependencies.
CurrentIdentity: TypeAlias = Annotated[Identity, Depends(_identity)]
#: The client's :class:`~hubbub.Connection`, for dependencies.
CurrentConnection: TypeAlias = Annotated[Connection, Depends(_connection)]
#: The :class:`~hubbub.Channel` that the handler is called for, for dependencies.
CurrentChannel: TypeAlias = Annotated[Channel, Depends(_channel)]

#: The dependencies behind these, each with the attribute of a call that it returns.
CURRENT: Mapping[Any, str] = {_identity: "identity", _connection: "connection", _channel: "channel"}


async def receive_nothing() -> Any:
    """Take the place of ``receive`` of ASGI for handlers and dependencies.

    :raises RuntimeError: always.
    """
    raise RuntimeError(
        "Expected handlers and dependencies not to receive, because Hubbub receives for all handlers."
    )


async def _send_nothing(message: Any) -> None:
    raise RuntimeError(
        "Expected handlers and dependencies not to send on this WebSocket, because it is not open. To "
        "refuse the client, raise an HTTPException."
    )
