"""Access: every use of a channel by a client passes here, whichever door it came through.

One message takes this way: validated; the dependencies of the channel, then of the handler; the handler; its
result validated and encoded; the dependencies closed, the last opened first; published; background tasks.
So no subscriber sees a message whose transaction fails when its dependency is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi.params import Depends
from msgspec import DecodeError, json
from pydantic_core import from_json
from starlette.background import BackgroundTasks

from hubbub.channels.channel import Channel
from hubbub.channels.collection import Method
from hubbub.channels.current import Call, Client
from hubbub.channels.declaration import ChannelDeclaration, Declared
from hubbub.channels.handler_seconds import HandlerKind, HandlerSeconds
from hubbub.channels.injection import Operation
from hubbub.channels.operations import ChannelOperations, check_nothing
from hubbub.channels.registry import Registry
from hubbub.channels.results import Encoded, InvalidResult
from hubbub.channels.signature import parse_signature, unwrap
from hubbub.codes import CloseCode, ErrorCode
from hubbub.connection.decoding import as_model, excerpt
from hubbub.core.publication import Position
from hubbub.exceptions import Denied, InvalidMessage
from hubbub.security.tokens import with_token
from hubbub.types import Identity

logger = logging.getLogger(__name__)

#: Publishes for a handler: the channel, the result, and the id of a connection that does not get it.
Publish = Callable[[str, Encoded, str | None], Awaitable[Position]]


class NeedsConnection(TypeError):
    """A handler asks for a connection, and the client has none."""


class Target:
    """A channel that a client uses.

    :param channel: its name and parameters.
    :param operations: of its declaration.
    """

    __slots__ = ("channel", "operations")

    def __init__(self, channel: Channel, operations: ChannelOperations) -> None:
        self.channel = channel
        self.operations = operations

    @property
    def declaration(self) -> ChannelDeclaration:
        return self.operations.declaration


@dataclass(slots=True)
class Outcome:
    """The result of a message.

    :param result: the result of the handler; ``None`` if it has returned none.
    :param position: of the publication; ``None`` if there is none.
    :param background: tasks to run after the answer.
    """

    result: Encoded | None
    position: Position | None = None
    background: BackgroundTasks | None = None


@dataclass(slots=True)
class Reply:
    """The result of an rpc.

    :param data: JSON.
    :param background: tasks to run after the reply.
    """

    data: bytes
    background: BackgroundTasks | None = None


class Access:
    """The declared handlers of a hub, ready to be called.

    :param registry: the declared channels.
    :param methods: the rpc methods.
    :param dependencies: of the hub; they run before all others.
    :param on_connect: returns the identity of a client; ``None`` makes all clients anonymous.
    :param on_disconnect: called when a connection has ended.
    :param publish: publishes the results of handlers.
    :param timer: takes the seconds that handlers need.
    :raises InvalidHandler: a handler cannot be called.
    """

    def __init__(
        self,
        registry: Registry,
        methods: Mapping[str, Method],
        *,
        dependencies: Sequence[Depends] = (),
        on_connect: Declared | None = None,
        on_disconnect: Declared | None = None,
        publish: Publish,
        timer: HandlerSeconds,
    ) -> None:
        self._registry = registry
        self._operations = {
            declaration.pattern: ChannelOperations(declaration, dependencies) for declaration in registry
        }
        self._methods = {name: _RPC(method.operation(dependencies)) for name, method in methods.items()}
        self._on_connect = None if on_connect is None else _operation(on_connect)
        self._on_disconnect = None if on_disconnect is None else _operation(on_disconnect)
        self._publish = publish
        self._timer = timer

    # Connections

    async def identify(self, client: Client) -> Identity:
        """Return the identity of a client.

        :param client: one that has none yet.
        :raises InvalidResult: ``on_connect`` has returned something else.
        """
        if self._on_connect is None:
            return Identity()
        identity = await self._on_connect(Call(client))
        if identity is None:
            return Identity()
        if not isinstance(identity, Identity):
            raise InvalidResult(
                f"Expected on_connect to return Identity or None, but got {type(identity).__name__}. Write "
                "return Identity(user=…)."
            )
        return identity

    async def refresh(self, client: Client, token: str) -> tuple[Identity, dict[str, Any]]:
        """Return the identity of an open connection with a new token, and the scope with it.

        :raises InvalidToken: no header can hold the token.
        """
        renewed = Client(client.http)
        renewed.scope = with_token(client.scope, token)
        return await self.identify(renewed), renewed.scope

    async def disconnected(self, client: Client) -> None:
        """Call ``on_disconnect``. Its exceptions are logged."""
        if self._on_disconnect is not None:
            await _logged(self._on_disconnect, Call(client))

    # Channels

    def find(self, name: str) -> Target | None:
        """Return the channel with this name; ``None`` if it is not declared."""
        declaration = self._registry.find(name)
        if declaration is None:
            return None
        params = declaration.parsed.params(name)
        assert params is not None
        return Target(Channel(name, params), self._operations[declaration.pattern])

    async def subscribe(self, client: Client, target: Target) -> None:
        """Run the dependencies of a channel and ``on_subscribe``; they refuse by an exception.

        :raises NeedsConnection: they need a connection, and the client has none.
        """
        if (operation := target.operations.subscribe) is not None:
            await self._timed(
                operation, Call(client, target.channel), target.declaration.pattern, "subscribe"
            )

    async def unsubscribed(self, client: Client, target: Target) -> None:
        """Call ``on_unsubscribe``. Its exceptions are logged."""
        if (operation := target.operations.unsubscribe) is not None:
            await _logged(operation, Call(client, target.channel))

    async def snapshot(self, client: Client, target: Target) -> bytes:
        """Return the state of a channel that has a ``snapshot``, as JSON.

        :raises NeedsConnection: the function needs a connection, and the client has none.
        """
        operation = target.operations.snapshot
        assert operation is not None
        call = Call(client, target.channel)
        state: bytes = await self._timed(operation, call, target.declaration.pattern, "snapshot")
        return state

    async def publish(self, client: Client, target: Target, data: str | bytes, kind: str | None) -> Outcome:
        """Handle one message of a client.

        :param kind: the ``type`` of the message, from :func:`~hubbub.channels.messages.peek`; only JSON has
            one.
        :raises Denied: clients may not publish such messages in the channel.
        :raises InvalidMessage: the message does not fit.
        :raises NeedsConnection: the handler needs a connection, and the client has none.
        """
        operations, channel = target.operations, target.channel
        messages = operations.messages
        message: Any = data
        if isinstance(data, bytes):
            handler = messages.binary
        elif messages.has_models:
            handler, parse = messages.find(data, kind)
            message = parse(data)
        else:
            handler = messages.text
        call = Call(client, channel, message)
        if handler is None:
            return await self._pass_on(call, target, data)
        result = await self._timed(handler.operation, call, operations.declaration.pattern, "publish")
        outcome = Outcome(result, background=call.background)
        if result is not None:
            connection = client.connection
            excluded = connection.id if handler.exclude_sender and connection is not None else None
            outcome.position = await self._publish(channel.name, result, excluded)
        return outcome

    async def rpc(self, client: Client, method: str, data: bytes) -> Reply:
        """Call an rpc method.

        :param data: its message, as JSON.
        :raises Denied: there is no such method.
        :raises InvalidMessage: the message does not fit.
        :raises NeedsConnection: the method needs a connection, and the client has none.
        """
        rpc = self._methods.get(method)
        if rpc is None:
            raise Denied(f"there is no method {excerpt(method, 64)!r}", code=ErrorCode.METHOD_NOT_FOUND)
        call = Call(client, message=rpc.parse(data))
        reply = await self._timed(rpc.operation, call, method, "rpc")
        return Reply(reply, call.background)

    # Internal

    async def _pass_on(self, call: Call, target: Target, data: str | bytes) -> Outcome:
        """Publish a message as it is, if clients may do that."""
        declaration, messages = target.declaration, target.operations.messages
        if declaration.client_publish != ("binary" if isinstance(data, bytes) else True):
            if declaration.client_publish or any(messages):
                found, other = ("binary", "text") if isinstance(data, bytes) else ("text", "binary")
                raise InvalidMessage(
                    f"Expected a {other} frame, but got a {found} frame.", code=CloseCode.UNSUPPORTED_DATA
                )
            raise Denied("clients may not publish in this channel")
        if (operation := target.operations.pass_on) is not None:
            await self._timed(operation, call, declaration.pattern, "publish")
        if isinstance(data, bytes):
            result = Encoded("binary", data)
        else:
            result = Encoded("json" if is_container(data) else "text", data.encode())
        position = await self._publish(target.channel.name, result, None)
        return Outcome(result, position, call.background)

    async def _timed(self, operation: Operation[Any], call: Call, name: str, kind: HandlerKind) -> Any:
        if operation.needs_connection and call.connection is None:
            raise NeedsConnection(
                f"{operation.signature.name}() asks for a connection, which a request does not have. Use a "
                "WebSocket."
            )
        if not self._timer.is_on:
            return await operation(call)
        start = perf_counter()
        try:
            return await operation(call)
        finally:
            self._timer.observe(name, kind, perf_counter() - start)


class _RPC:
    """An rpc method, ready to be called."""

    __slots__ = ("_parse", "operation")

    def __init__(self, operation: Operation[bytes]) -> None:
        self.operation = operation
        signature = operation.signature
        takes_any = unwrap(signature.message_type) in (Any, object)
        self._parse = None if signature.message is None or takes_any else as_model(signature.message_type)

    def parse(self, data: bytes) -> Any:
        if self._parse is not None:
            return self._parse(data)
        value = from_json(data)
        if self.operation.signature.message is None and value is not None:
            raise InvalidMessage(
                "Expected no data, because the method takes none, but got some.", code=CloseCode.INVALID_DATA
            )
        return value


def is_container(data: str) -> bool:
    """Whether ``data`` is a JSON object or a JSON array; other JSON could be meant as text."""
    if data.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.decode(data)
    except (DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _operation(declared: Declared) -> Operation[Any]:
    signature = parse_signature(declared.function, declared.purpose, (), declared.names)
    if declared.purpose == "on_connect":
        return Operation(signature)
    return Operation(signature, (), lambda result: check_nothing(signature, result))


async def _logged(operation: Operation[None], call: Call) -> None:
    try:
        await operation(call)
        if call.background is not None:
            await call.background()
    except Exception:
        # The client has left, so the log is the only place.
        logger.exception("The %s handler %s failed.", operation.signature.purpose, operation.signature.name)
